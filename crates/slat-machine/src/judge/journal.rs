//! The last barriers and invalidations, and why each did not do for a residue.
//!
//! A residue is judged by its own progress; this is only how the judge explains itself.

use std::collections::VecDeque;

use super::order::Stamp;
use super::residue::{Old, Progress, Removal, Residue};
use super::rule::Line;
use super::story::{self, Did};
use crate::architecture::{Descriptor, Effect, Forgotten, Reach};
use crate::event::Vm;

/// How many are remembered.
const REMEMBERED: usize = 64;
/// How many useless ones a story tells at most.
const TOLD: usize = 6;

/// A barrier or invalidation.
#[derive(Clone, Debug)]
struct Maintenance {
    did: Did,
    vm: Vm,
    effect: Effect,
    stamp: Stamp,
}

/// The last barriers and invalidations.
#[derive(Debug, Default)]
pub(super) struct Journal(VecDeque<Maintenance>);

impl Journal {
    pub(super) fn note(&mut self, did: Did, vm: Vm, effect: Effect, stamp: Stamp) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        let maintenance = Maintenance {
            did,
            vm,
            effect,
            stamp,
        };
        self.0.push_back(maintenance);
    }

    /// How the residue came to be, and what was and was not done about it.
    pub(super) fn story(&self, residue: &Residue) -> Vec<Line> {
        let mut lines = life(residue);
        let since = self
            .0
            .iter()
            .filter(|it| it.did.moment.at > residue.removed.moment.at);
        let useless: Vec<Line> = since
            .filter_map(|it| Some(it.did.line(why_not(it, residue)?)))
            .collect();
        let skipped = useless.len().saturating_sub(TOLD);
        lines.extend(useless.into_iter().skip(skipped));
        for progress in &residue.progress {
            lines.extend(counted(progress));
        }
        lines
    }

    /// What is still needed for the residue to be gone.
    pub(super) fn missing(&self, residue: &Residue) -> String {
        let gpa = residue.gpa;
        let steps = &residue.progress;
        if let Some(missing) = forgotten_by_some(residue) {
            return missing;
        }
        let pending = |it: &Progress| it.combined_issued.or(it.all_issued).is_some();
        if let Some(it) = steps.iter().find(|it| pending(it)) {
            return format!(
                "a barrier of CPU {} that completes its invalidation",
                it.cpu
            );
        }
        if steps.iter().any(|it| it.second_done.is_some()) {
            return format!(
                "an invalidation of what was combined with the guest's own translation of GPA \
                 {gpa}, by a CPU that knows the second-stage one is complete, and its completion"
            );
        }
        if let Some(it) = steps.iter().find(|it| it.second_issued.is_some()) {
            return format!(
                "a barrier of CPU {} that completes its invalidation",
                it.cpu
            );
        }
        let removed = residue.removed.moment;
        let visible = |it: &Maintenance| it.stamp.knows_visible(removed);
        if self.0.iter().any(visible) {
            return format!(
                "an invalidation of GPA {gpa}, issued by a CPU that knows the removal is visible"
            );
        }
        "a barrier that makes the removal visible to all walkers, by a CPU that has seen it, and \
         then the invalidation"
            .to_owned()
    }
}

/// What is missing where CPUs forget for themselves and some have.
fn forgotten_by_some(residue: &Residue) -> Option<String> {
    let issued = |it: &Progress| {
        let issued = it.second_issued.or(it.combined_issued).or(it.all_issued);
        issued.is_some()
    };
    let by_all = |it: &Progress| it.reach == Reach::All && issued(it);
    let has_forgotten = |it: &Progress| issued(it) && !residue.held_by.contains(&it.cpu);
    let steps = &residue.progress;
    let some = !steps.iter().any(by_all) && steps.iter().any(has_forgotten);
    some.then(|| {
        let cpus: Vec<_> = residue.held_by.iter().map(ToString::to_string).collect();
        format!(
            "an invalidation of GPA {} by CPU {}",
            residue.gpa,
            cpus.join(", ")
        )
    })
}

/// Written, cached, removed.
fn life(residue: &Residue) -> Vec<Line> {
    let what = story::descriptor(
        residue.gpa,
        &match residue.old {
            Old::Leaf(leaf) => Descriptor::Leaf(leaf),
            Old::Table(table) => Descriptor::Table(table),
        },
    );
    let entry = residue.entry;
    let mut lines = Vec::new();
    if let Some(written) = residue.written {
        lines.push(written.line(format!("wrote entry {entry}: {what}")));
    }
    let holder = if let Some(cached) = residue.cached {
        let how = if cached.combined {
            "cached it, combined with the guest's own translation"
        } else {
            "cached it"
        };
        lines.push(cached.did.line(how));
        ""
    } else {
        "; any CPU may hold it"
    };
    let how = match residue.removal {
        Removal::Emptied => format!("made entry {entry} invalid"),
        Removal::Replaced => format!("replaced entry {entry}"),
        Removal::Restricted => format!("made entry {entry} allow less"),
        Removal::CutOff => format!("cut off the table with entry {entry} ({what})"),
        Removal::VmEnded => format!("ended VM {} with entry {entry}", residue.vm),
    };
    lines.push(residue.removed.line(how + holder));
    lines
}

/// The steps that counted.
fn counted(progress: &Progress) -> Vec<Line> {
    let all = [
        (
            progress.second_issued,
            "invalidated second-stage copies of it",
        ),
        (progress.second_done, "completed that"),
        (
            progress.combined_issued,
            "invalidated combined copies of it",
        ),
        (progress.all_issued, "invalidated everything of the VM"),
    ];
    let told = all
        .iter()
        .filter_map(|(did, text)| Some(did.as_ref()?.line(*text)));
    told.collect()
}

/// Why it did not do; `None` if it did, or has nothing to do with the residue.
fn why_not(it: &Maintenance, residue: &Residue) -> Option<String> {
    let removed = residue.removed.moment;
    let level = residue.level;
    let Effect::Forget { reach, what } = it.effect else {
        return barrier(it, residue);
    };
    if it.vm != residue.vm {
        return Some(format!("invalidated VM {}, not VM {}", it.vm, residue.vm));
    }
    if reach == Reach::Local && !residue.held_by.contains(&it.stamp.cpu()) {
        return Some("invalidated on its own CPU only".to_owned());
    }
    if let Forgotten::Address {
        gpa: named,
        leaf_only,
        level: hinted,
    } = what
    {
        if !residue.page.contains(named.0) {
            let page = residue.page;
            return Some(format!("invalidated GPA {named}, which is not in {page}"));
        }
        if leaf_only && matches!(residue.old, Old::Table(_)) {
            return Some(format!(
                "invalidated leaves only, not the table pointer of level {level}"
            ));
        }
        if let Some(hinted) = hinted
            && (hinted != level || matches!(residue.old, Old::Table(_)))
        {
            return Some(
                "invalidated with a hint of another level, and so need find nothing".into(),
            );
        }
    }
    let by_itself = residue
        .progress
        .iter()
        .find(|progress| progress.cpu == it.did.moment.cpu && progress.reach == reach);
    if what == Forgotten::Combined {
        let counted = by_itself.and_then(|progress| progress.combined_issued);
        return (counted.is_none_or(|did| it.did.moment.at < did.moment.at)).then(|| {
            "invalidated combined copies before the second-stage invalidation was known to be \
             complete: they can be combined anew"
                .to_owned()
        });
    }
    if residue.knows_visible(&it.stamp, reach) {
        let counted = by_itself.and_then(|progress| progress.second_issued.or(progress.all_issued));
        return counted.is_none().then(|| {
            "invalidated leaves only, while walkers could read it anew through a table pointer"
                .to_owned()
        });
    }
    let text = if it.stamp.has_seen(removed) {
        "invalidated before the removal was visible: walkers can read it anew"
    } else {
        "invalidated without having seen the removal: nothing orders the two"
    };
    Some(text.to_owned())
}

fn barrier(it: &Maintenance, residue: &Residue) -> Option<String> {
    let Effect::Complete {
        reach,
        invalidations,
    } = it.effect
    else {
        return None;
    };
    let issued = |progress: &&Progress| {
        let Progress {
            second_issued,
            second_done,
            combined_issued,
            all_issued,
            ..
        } = progress;
        let pending = (second_issued.is_some() && second_done.is_none())
            || combined_issued.is_some()
            || all_issued.is_some();
        let before = second_issued.or(*combined_issued).or(*all_issued);
        pending && before.is_some_and(|did| did.moment.at < it.did.moment.at)
    };
    let waiting = residue.progress.iter().find(issued);
    if reach == Reach::Local {
        return Some("executed a barrier for its own CPU only".to_owned());
    }
    if let Some(progress) = waiting {
        if progress.cpu != it.did.moment.cpu {
            return Some(format!(
                "executed a barrier, which does not complete what CPU {} issued",
                progress.cpu
            ));
        }
        return (!invalidations)
            .then(|| "executed a barrier for stores, which completes no invalidation".to_owned());
    }
    (!it.stamp.has_seen(residue.removed.moment))
        .then(|| "executed a barrier without having seen the removal".to_owned())
}
