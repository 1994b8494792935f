//! Adding translations: tables, leaves, what makes an answer old (P3), what is in the way (P4).

use slat_table::address::GpaRange;
use slat_table::attributes::{Attributes, Execute, MemoryType, Permissions};
use slat_table::cache::TableCache;
use slat_table::format::{EncodeError, Format};
use slat_table::geometry::Level;
use slat_table::hold::{Installed, NoTableReady};
use slat_table::restriction::PartialBlock;
use slat_table::simulated::Event;
use slat_table::table::{LeavesError, NewTableError, PageTable, TableOptions};

use crate::operations::host_bits;
use crate::setup::{Bench, DEVICE, Machine, PAGE, RAM, ROM, gpa, hpa, range};

fn present(leaves: u64) -> Installed {
    Installed {
        present: leaves,
        ..Installed::default()
    }
}

fn conflict(range: GpaRange) -> Installed {
    Installed {
        conflict: Some(range),
        ..Installed::default()
    }
}

// Making tables.

fn a_table_that_cannot_be_made_leaves_nothing_behind<F: Format>(features: F::Features, bits: u8) {
    let machine = Machine::new();
    let make = |address_bits, stripes| {
        let options = TableOptions {
            address_bits,
            stripes,
        };
        PageTable::<F, _>::new(machine.clone(), features, options).map(|_| ())
    };
    for impossible in [1, 64] {
        let refused = make(impossible, 1);
        assert!(matches!(refused, Err(NewTableError::Geometry(_))));
    }
    for stripes in [0, 3, 128] {
        assert_eq!(make(bits, stripes), Err(NewTableError::Stripes(stripes)));
    }
    machine.fail_allocation(0);
    assert!(matches!(make(bits, 64), Err(NewTableError::OutOfTables(_))));
    assert_eq!(machine.live_tables(), 0);
    assert_eq!(make(bits, 64), Ok(()));
    assert_eq!(machine.live_tables(), 0);
}

fn dropping_a_table_flushes_before_it_frees<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    bench.map(bench.page(0), bench.host, PAGE, RAM);
    bench.record();
    drop(bench.table);
    let events = bench.machine.take_events();
    let flush = events
        .iter()
        .position(|event| matches!(event, Event::Flushed(_)))
        .unwrap();
    let freed = events
        .iter()
        .position(|event| matches!(event, Event::Freed { .. }))
        .unwrap();
    assert!(flush < freed);
    assert_eq!(bench.machine.live_tables(), 0);
}

fn a_new_leaf_needs_a_local_flush_only_where_invalid_entries_are_cached<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let local_flushes = [(); 2].map(|()| {
        let before = bench.machine.local_flushes();
        bench.install(bench.page(0), bench.host, PAGE, RAM);
        bench.machine.local_flushes() - before
    });
    // The same leaf again is a spurious fault: this CPU holds something old.
    let new = u64::from(F::rules(&features).caches_invalid);
    assert_eq!(local_flushes, [new, 1]);
}

// Leaves.

fn leaves_must_be_a_run_of_entries_of_one_table<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let Bench {
        end, page, span, ..
    } = bench;
    let geometry = *bench.table.geometry();
    let not_a_run = |range, level| {
        let error = LeavesError::NotARun { range, level };
        let leaves = bench.table.leaves(range, hpa(bench.host), level, RAM);
        assert_eq!(leaves, Err(error));
    };
    for (level, bytes) in bench.blocks() {
        not_a_run(range(page, bytes), level);
        not_a_run(range(0, bytes + page), level);
    }
    not_a_run(range(span - page, 2 * page), PAGE);
    not_a_run(range(end - page, 2 * page), PAGE);
    not_a_run(range(end, page), PAGE);
    not_a_run(range(0, bench.upper), geometry.root().up());
    not_a_run(range(0, bench.upper), Level::new(200));
    let ok = |range, to, level| {
        let leaves = bench.table.leaves(range, hpa(to), level, RAM);
        assert_eq!(leaves.map(|leaves| leaves.range()), Ok(range));
    };
    ok(range(end - page, page), bench.host, PAGE);
    let next = Level::new(1);
    let all = range(0, geometry.table_maps(next).min(end));
    if geometry.shape(next).leaf {
        ok(all, 0, next);
    } else {
        let error = EncodeError::NoLeaf(next).into();
        let leaves = bench.table.leaves(all, hpa(0), next, RAM);
        assert_eq!(leaves, Err(error));
    }
}

fn every_leaf_of_a_run_must_have_a_host_address<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (end, page) = (1u64 << host_bits::<F>(&features), bench.page);
    let leaves = |pages: u64, to| {
        let leaves = bench.table.leaves(bench.pages(pages), hpa(to), PAGE, RAM);
        leaves.map(|_| ())
    };
    if F::leaf(&features, PAGE, hpa(end), RAM).is_ok() {
        // Entries hold all 64 bits, and the next address is no number.
        let last = 0u64.wrapping_sub(page);
        assert_eq!(leaves(1, last), Ok(()));
        assert!(matches!(leaves(2, last), Err(LeavesError::NotARun { .. })));
        return;
    }
    assert_eq!(leaves(1, end - page), Ok(()));
    let refused = leaves(2, end - page);
    assert!(
        matches!(
            refused,
            Err(LeavesError::Encode(EncodeError::AddressWidth { hpa, .. })) if hpa.raw() == end
        ),
        "{refused:?}"
    );
}

fn leaves_that_cannot_be_counted_through_say_where_to_part<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let page = bench.page;
    let step = F::leaf_step(PAGE);
    for border in bench.span.trailing_zeros()..u32::from(host_bits::<F>(&features)) {
        let border = 1 << border;
        let encoded = |to| F::leaf(&features, PAGE, hpa(to), RAM).unwrap();
        // Three pages before the border, and two behind it.
        let to = border - 3 * page;
        let carries = encoded(border) != encoded(border - page).wrapping_add(step);
        let error = LeavesError::Carry {
            front: bench.pages(3),
        };
        let leaves = bench.table.leaves(bench.pages(5), hpa(to), PAGE, RAM);
        assert_eq!(leaves.err(), carries.then_some(error), "{border:#x}");
    }
}

fn installing_needs_tables_made_ready<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &*bench.table;
    let page = bench.page(0);
    let leaves = table.leaves(page, hpa(bench.host), PAGE, RAM).unwrap();
    let mut cache = TableCache::new(table);
    let installed = table.hold(&page).install(&leaves, &mut cache);
    let missing = table.geometry().root().down().unwrap();
    assert_eq!(installed, Err(NoTableReady(missing)));
    assert_eq!(bench.look(0), None);
    cache.fill().unwrap();
    assert!(table.hold(&page).install(&leaves, &mut cache).is_ok());
    assert_eq!(bench.look(0xfff), Some((bench.host + 0xfff, PAGE)));
}

fn tables_made_ready_for_another_tree_are_refused<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let options = TableOptions {
        address_bits: bits,
        ..TableOptions::default()
    };
    let other = PageTable::<F, _>::new(bench.machine.clone(), features, options).unwrap();
    let mut cache = TableCache::new(&other);
    cache.fill().unwrap();
    let page = bench.page(0);
    let leaves = bench.table.leaves(page, hpa(bench.host), PAGE, RAM);
    let refused = bench
        .table
        .hold(&page)
        .install(&leaves.unwrap(), &mut cache);
    assert_eq!(refused, Err(NoTableReady(PAGE)));
    assert_eq!(bench.look(0), None);
}

fn installing_outside_the_held_stripes_is_refused<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &*bench.table;
    let mut cache = TableCache::new(table);
    cache.fill().unwrap();
    let elsewhere = bench.page(bench.span);
    let leaves = table.leaves(elsewhere, hpa(bench.host), PAGE, RAM).unwrap();
    let mut hold = table.hold(&bench.page(0));
    assert!(!hold.covers(&leaves));
    assert!(hold.install(&leaves, &mut cache).is_err());
    drop(hold);
    assert_eq!(bench.look(bench.span), None);
}

// P3: the sequences.

fn a_removal_in_progress_or_done_makes_a_snapshot_old<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let table = &*bench.table;
    let here = bench.page(0);
    let elsewhere = bench.page(bench.span);
    let (old, other) = (table.snapshot(&here), table.snapshot(&elsewhere));
    let restriction = table.restrict(&here);
    assert!(
        !table.hold(&here).is_current(&table.snapshot(&here)),
        "in progress"
    );
    assert!(
        table.hold(&elsewhere).is_current(&other),
        "another stripe does not notice"
    );
    drop(restriction);
    assert!(!table.hold(&here).is_current(&old), "ended since");
    assert!(table.hold(&here).is_current(&table.snapshot(&here)));
    let raised = {
        let mut restriction = table.restrict(&here);
        drop(restriction.unmap(&here, PartialBlock::Drop));
        restriction.leave_raised()
    };
    assert!(
        !table.hold(&here).is_current(&table.snapshot(&here)),
        "left raised"
    );
    table.lower(raised);
    assert!(table.hold(&here).is_current(&table.snapshot(&here)));
}

// P4: what is in the way.

fn the_same_leaf_again_is_present<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let four = bench.pages(4);
    bench.map(four, bench.host, PAGE, RAM);
    let before = bench.machine.local_flushes();
    assert_eq!(bench.install(four, bench.host, PAGE, RAM), present(4));
    assert_eq!(
        bench.machine.local_flushes(),
        before + 1,
        "a spurious fault flushes locally"
    );
    assert_eq!(
        bench.install(bench.page(0), bench.host, PAGE, bench.rom()),
        present(1),
        "less changes nothing"
    );
    assert_eq!(bench.said(0), RAM);
}

fn permissions_are_added_in_place<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    // As many software bits as there are.
    let marked = [0b1010, 0b101, 0b10, 1, 0].map(|software| Attributes {
        software,
        ..bench.rom()
    });
    let marked = bench.first_of(&marked).unwrap();
    let page = bench.page(0);
    bench.map(page, bench.host, PAGE, marked);
    bench.record();
    let installed = bench.install(page, bench.host, PAGE, RAM);
    assert_eq!(
        installed,
        Installed {
            extended: 1,
            ..Installed::default()
        }
    );
    let permissions = Permissions::ALL;
    assert_eq!(
        bench.said(0),
        Attributes {
            permissions,
            ..marked
        }
    );
    let events = bench.machine.take_events();
    assert!(events.contains(&Event::FlushedLocally(page)));
    assert!(
        !events
            .iter()
            .any(|event| matches!(event, Event::Flushed(_))),
        "others just fault"
    );
    // A table may be made ready on the way, where nothing stands yet.
    let writes = events
        .iter()
        .filter(|event| matches!(event, Event::Written { old, .. } if *old != 0))
        .count();
    assert_eq!(writes, 1, "no break");
}

fn execute_permissions_add_up<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let may = |execute| Attributes {
        permissions: Permissions {
            execute,
            ..Permissions::READ
        },
        ..ROM
    };
    let (privileged, unprivileged) = (may(Execute::Privileged), may(Execute::Unprivileged));
    if !(bench.expresses(privileged) && bench.expresses(unprivileged)) {
        return;
    }
    let page = bench.page(0);
    bench.map(page, bench.host, PAGE, privileged);
    let installed = bench.install(page, bench.host, PAGE, unprivileged);
    assert_eq!(installed.extended, 1);
    assert_eq!(bench.said(0), may(Execute::Always));
}

fn an_old_leaf_becomes_young_again<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (table, page) = (&bench.table, bench.page(0));
    bench.map(page, bench.host, PAGE, RAM);
    assert!(table.test_young(&page) && table.age(&page));
    let ages = bench.ages();
    // Where a leaf cannot say that it was not used, it always was.
    assert_eq!(table.test_young(&page), !ages);
    assert_eq!(table.age(&page), !ages);
    assert_eq!(bench.said(0).accessed, !ages);
    let installed = bench.install(page, bench.host, PAGE, RAM);
    assert_eq!(installed.extended, u64::from(ages));
    assert!(table.test_young(&page));
}

fn what_was_written_stays_noted_when_a_leaf_allows_more<F: Format>(
    features: F::Features,
    bits: u8,
) {
    let bench = Bench::<F>::new(features, bits);
    let permissions = Permissions::READ_WRITE;
    let not_executable = Attributes { permissions, ..RAM };
    let clean = bench.first_of(&[not_executable, RAM]).unwrap();
    let dirty = Attributes {
        dirty: true,
        ..clean
    };
    if !bench.expresses(dirty) {
        return;
    }
    let [first, second] = [0, bench.page].map(|at| bench.page(at));
    bench.map(first, bench.host, PAGE, dirty);
    bench.install(first, bench.host, PAGE, RAM);
    assert_eq!(bench.said(0), Attributes { dirty: true, ..RAM });
    bench.map(second, bench.host, PAGE, clean);
    bench.install(second, bench.host, PAGE, dirty);
    assert_eq!(bench.said(bench.page), dirty);
}

/// Memory of another type than [`RAM`]'s, where the format has any.
fn other_memory<F: Format>(bench: &Bench<F>) -> Option<Attributes> {
    let permissions = Permissions::ALL;
    let uncached = Attributes::new(permissions, MemoryType::NonCacheable);
    bench.first_of(&[DEVICE, uncached])
}

fn another_address_or_memory_type_is_a_conflict<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (host, page) = (bench.host, bench.page(0));
    bench.map(bench.pages(3), host, PAGE, RAM);
    assert_eq!(
        bench.install(page, host + bench.page, PAGE, RAM),
        conflict(page)
    );
    if let Some(other) = other_memory(&bench) {
        assert_eq!(bench.install(page, host, PAGE, other), conflict(page));
    }
    assert_eq!(bench.look(0), Some((host, PAGE)), "nothing is overwritten");
    // A run stops at the conflict and says what it did before.
    let second = bench.page(bench.page);
    bench.unmap(&second);
    bench.map(second, host, PAGE, RAM);
    let stopped = Installed {
        present: 1,
        ..conflict(second)
    };
    assert_eq!(bench.install(bench.pages(3), host, PAGE, RAM), stopped);
}

fn a_larger_leaf_in_the_way<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let (host, page, rom) = (bench.host, bench.page, bench.rom());
    for (level, bytes) in bench.blocks() {
        let block = range(bytes, bytes);
        bench.map(block, host, level, rom);
        let inside = range(bytes + 5 * page, 2 * page);
        let install = |to, attributes| bench.install(inside, to, PAGE, attributes);
        assert_eq!(install(host + 5 * page, rom), present(2), "mapped already");
        assert_eq!(install(host + 6 * page, rom), conflict(block));
        assert_eq!(install(host + 5 * page, RAM), conflict(block));
        if let Some(other) = other_memory(&bench) {
            assert_eq!(install(host + 5 * page, other), conflict(block));
        }
        assert!(bench.table.age(&inside));
        let old = if bench.ages() {
            conflict(block)
        } else {
            present(2)
        };
        assert_eq!(install(host + 5 * page, rom), old);
        bench.unmap(&block);
    }
}

fn smaller_leaves_in_the_way<F: Format>(features: F::Features, bits: u8) {
    let bench = Bench::<F>::new(features, bits);
    let host = bench.host;
    for (level, bytes) in bench.blocks() {
        let block = range(bytes, bytes);
        let middle = bytes + bytes / 2;
        bench.map(bench.page(middle), host + bytes / 2, PAGE, RAM);
        assert_eq!(bench.install(block, host, level, RAM), conflict(block));
        assert_eq!(bench.look(middle), Some((host + bytes / 2, PAGE)));
        bench.unmap(&block);
        bench.map(block, host, level, RAM);
        assert_eq!(bench.look(middle), Some((host + bytes / 2, level)));
        bench.unmap(&block);
        assert_eq!(bench.table.translate(gpa(middle)), None);
    }
}

crate::setup::for_every_format! {
    a_table_that_cannot_be_made_leaves_nothing_behind,
    dropping_a_table_flushes_before_it_frees,
    a_new_leaf_needs_a_local_flush_only_where_invalid_entries_are_cached,
    leaves_must_be_a_run_of_entries_of_one_table,
    every_leaf_of_a_run_must_have_a_host_address,
    leaves_that_cannot_be_counted_through_say_where_to_part,
    installing_needs_tables_made_ready,
    tables_made_ready_for_another_tree_are_refused,
    installing_outside_the_held_stripes_is_refused,
    a_removal_in_progress_or_done_makes_a_snapshot_old,
    the_same_leaf_again_is_present,
    permissions_are_added_in_place,
    execute_permissions_add_up,
    an_old_leaf_becomes_young_again,
    what_was_written_stays_noted_when_a_leaf_allows_more,
    another_address_or_memory_type_is_a_conflict,
    a_larger_leaf_in_the_way,
    smaller_leaves_in_the_way,
}
