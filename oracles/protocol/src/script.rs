//! The script: a header and a list of actions, all in little-endian words of 8 bytes.

use crate::tree::{Mapping, Removal, TreeOptions};

/// The first word of every script.
const MAGIC: u64 = u64::from_le_bytes(*b"slatorc1");

/// Bytes of a word.
const WORD: usize = 8;

/// What a guest access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load of 8 bytes.
    Read,
    /// A store of 8 bytes: [`Probe::stored`].
    Write,
    /// A fetch of one instruction.
    Execute,
}

/// Which part of the guest makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// The guest's kernel (Arm: EL1; RISC-V: VS-mode).
    Kernel,
    /// The guest's user programs (Arm: EL0; RISC-V: VU-mode).
    User,
}

/// How an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Means {
    /// By an instruction that asks the MMU what such an access would meet, where there is one
    /// (Arm: `AT S12E1R`). Works for addresses that no memory is behind.
    Question,
    /// By the hypervisor on the guest's behalf, where there are instructions for that (RISC-V:
    /// `HLV.D`, `HSV.D`).
    OnBehalf,
    /// By the guest itself.
    Guest,
    /// By a guest whose own page table is in the page at [`Probe::gpa`]: it reads from its code
    /// page through that table, so that the MMU reads the table through ours. The script puts
    /// there what maps the guest's addresses to themselves.
    GuestTable,
}

/// One access to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Guest physical address.
    pub gpa: u64,
    /// What is done there.
    pub access: Access,
    /// By whom.
    pub who: Who,
    /// By what means.
    pub means: Means,
}

impl Probe {
    /// What a [`Write`](Access::Write) stores: told apart from what was there before.
    pub const fn stored(&self) -> u64 {
        !self.gpa
    }
}

/// The registers that put the guest on other tables, and the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Regime {
    /// Registers in an order that the architecture's payload and its driver agree on.
    pub registers: [u64; 4],
    /// Guest physical address of the page that shows the guest's code to it.
    pub code_gpa: u64,
    /// Where that page is: the payload writes the guest's code there.
    pub code_hpa: u64,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'s> {
    /// Fills `bytes` bytes (a multiple of 8) at host address `at` with `word`, which is in the
    /// order of the machine's memory.
    Fill {
        /// First host physical address.
        at: u64,
        /// How many bytes.
        bytes: u64,
        /// What with.
        word: u64,
    },
    /// Copies bytes to host address `at`.
    Copy {
        /// First host physical address.
        at: u64,
        /// What is copied.
        bytes: &'s [u8],
    },
    /// Puts the guest on other tables, with nothing of the old ones remembered.
    Enter(Regime),
    /// Tries an access. Answered.
    Probe(Probe),
    /// Reads 8 bytes at a host address. Answered, with the word as a little-endian number.
    Peek {
        /// Where.
        at: u64,
    },
    /// Makes an empty tree with `slat-table` in the payload itself and puts the guest on it.
    Tree(TreeOptions),
    /// Maps a range in that tree.
    Map(Mapping),
    /// Takes a range out of that tree.
    Remove(Removal),
}

/// A script that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first word is another one.
    #[error("a script begins with {MAGIC:#x}, not {0:#x}")]
    Magic(u64),
    /// It ends in the middle of an action.
    #[error("the script ends at byte {0}, in the middle of an action")]
    Short(usize),
    /// A word that should name one of a few things names none.
    #[error("{word:#x} at byte {at} names no {what}")]
    Name {
        /// The word.
        word: u64,
        /// Its place.
        at: usize,
        /// What it should have named.
        what: &'static str,
    },
}

/// Words of the script's header: magic, number of actions.
pub const HEADER_BYTES: usize = 2 * WORD;

/// The actions of a script, in order.
#[derive(Clone, Debug)]
pub struct Actions<'s> {
    reader: Reader<'s>,
    left: u64,
}

impl<'s> Actions<'s> {
    /// The actions of the script that `bytes` begin with. What comes behind it is not looked at.
    ///
    /// # Errors
    ///
    /// [`Malformed`] if the header is not a script's.
    pub fn new(bytes: &'s [u8]) -> Result<Self, Malformed> {
        let mut reader = Reader { bytes, at: 0 };
        let magic = reader.word()?;
        if magic != MAGIC {
            return Err(Malformed::Magic(magic));
        }
        let left = reader.word()?;
        Ok(Self { reader, left })
    }
}

impl<'s> Iterator for Actions<'s> {
    type Item = Result<Action<'s>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let action = self.reader.action();
        if action.is_err() {
            self.left = 0;
        }
        Some(action)
    }
}

/// What the first word of an action says.
mod tag {
    pub(super) const FILL: u64 = 1;
    pub(super) const COPY: u64 = 2;
    pub(super) const ENTER: u64 = 3;
    pub(super) const PROBE: u64 = 4;
    pub(super) const PEEK: u64 = 5;
    pub(super) const TREE: u64 = 6;
    pub(super) const MAP: u64 = 7;
    pub(super) const REMOVE: u64 = 8;
}

/// Reads words one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'s> {
    bytes: &'s [u8],
    at: usize,
}

impl<'s> Reader<'s> {
    pub(crate) fn word(&mut self) -> Result<u64, Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let word = rest.first_chunk().ok_or(Malformed::Short(self.at))?;
        self.at += WORD;
        Ok(u64::from_le_bytes(*word))
    }

    fn words<const N: usize>(&mut self) -> Result<[u64; N], Malformed> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.word()?;
        }
        Ok(words)
    }

    fn bytes(&mut self, length: u64) -> Result<&'s [u8], Malformed> {
        let short = Malformed::Short(self.at);
        let length = usize::try_from(length).map_err(|_| short)?;
        let end = self.at.checked_add(length).ok_or(short)?;
        let bytes = self.bytes.get(self.at..end).ok_or(short)?;
        self.at = end.next_multiple_of(WORD);
        Ok(bytes)
    }

    /// One of `names`, by its place in the list.
    pub(crate) fn name<T: Copy>(
        &mut self,
        names: &[T],
        what: &'static str,
    ) -> Result<T, Malformed> {
        let at = self.at;
        let word = self.word()?;
        usize::try_from(word)
            .ok()
            .and_then(|index| names.get(index).copied())
            .ok_or(Malformed::Name { word, at, what })
    }

    fn action(&mut self) -> Result<Action<'s>, Malformed> {
        let at = self.at;
        Ok(match self.word()? {
            tag::FILL => {
                let [at, bytes, word] = self.words()?;
                Action::Fill { at, bytes, word }
            }
            tag::COPY => {
                let [at, length] = self.words()?;
                let bytes = self.bytes(length)?;
                Action::Copy { at, bytes }
            }
            tag::ENTER => Action::Enter(Regime {
                registers: self.words()?,
                code_gpa: self.word()?,
                code_hpa: self.word()?,
            }),
            tag::PROBE => Action::Probe(Probe {
                gpa: self.word()?,
                access: self.name(&ACCESSES, "access")?,
                who: self.name(&WHO, "part of the guest")?,
                means: self.name(&MEANS, "means")?,
            }),
            tag::PEEK => Action::Peek { at: self.word()? },
            tag::TREE => Action::Tree(TreeOptions::read(self)?),
            tag::MAP => Action::Map(Mapping::read(self)?),
            tag::REMOVE => Action::Remove(Removal::read(self)?),
            word => {
                let what = "action";
                return Err(Malformed::Name { word, at, what });
            }
        })
    }
}

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];
const WHO: [Who; 2] = [Who::Kernel, Who::User];
const MEANS: [Means; 4] = [
    Means::Question,
    Means::OnBehalf,
    Means::Guest,
    Means::GuestTable,
];

#[cfg(any(feature = "std", test))]
pub use writing::Script;

#[cfg(any(feature = "std", test))]
mod writing {
    use std::vec::Vec;

    use super::{Action, MAGIC, Probe, WORD, tag};

    /// A script being written.
    #[derive(Clone, Debug)]
    pub struct Script {
        bytes: Vec<u8>,
        actions: u64,
    }

    impl Default for Script {
        fn default() -> Self {
            let mut script = Self {
                bytes: Vec::new(),
                actions: 0,
            };
            script.words(&[MAGIC, 0]);
            script
        }
    }

    impl Script {
        /// Appends an action.
        pub fn push(&mut self, action: &Action<'_>) {
            match *action {
                Action::Fill { at, bytes, word } => self.words(&[tag::FILL, at, bytes, word]),
                Action::Copy { at, bytes } => {
                    self.words(&[tag::COPY, at, bytes.len() as u64]);
                    self.bytes.extend_from_slice(bytes);
                    let padded = self.bytes.len().next_multiple_of(WORD);
                    self.bytes.resize(padded, 0);
                }
                Action::Enter(regime) => {
                    self.words(&[tag::ENTER]);
                    self.words(&regime.registers);
                    self.words(&[regime.code_gpa, regime.code_hpa]);
                }
                Action::Probe(Probe {
                    gpa,
                    access,
                    who,
                    means,
                }) => self.words(&[tag::PROBE, gpa, access as u64, who as u64, means as u64]),
                Action::Peek { at } => self.words(&[tag::PEEK, at]),
                Action::Tree(options) => {
                    self.words(&[tag::TREE]);
                    self.words(&options.words());
                }
                Action::Map(mapping) => {
                    self.words(&[tag::MAP]);
                    self.words(&mapping.words());
                }
                Action::Remove(removal) => {
                    self.words(&[tag::REMOVE]);
                    self.words(&removal.words());
                }
            }
            self.actions += 1;
        }

        /// The script, for the machine's memory.
        pub fn into_bytes(mut self) -> Vec<u8> {
            self.bytes[WORD..2 * WORD].copy_from_slice(&self.actions.to_le_bytes());
            self.bytes
        }

        fn words(&mut self, words: &[u64]) {
            for word in words {
                self.bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use crate::tree::Omission;

    fn every_action() -> [Action<'static>; 8] {
        [
            Action::Fill {
                at: 0x1000,
                bytes: 0x2000,
                word: u64::MAX,
            },
            Action::Copy {
                at: 0x3001,
                bytes: b"eleven byte",
            },
            Action::Enter(Regime {
                registers: [1, 2, 3, 4],
                code_gpa: 5,
                code_hpa: 6,
            }),
            Action::Probe(Probe {
                gpa: 0xff,
                access: Access::Execute,
                who: Who::User,
                means: Means::Guest,
            }),
            Action::Peek { at: 8 },
            Action::Tree(TreeOptions {
                format: 1,
                address_bits: 40,
                code_gpa: 2,
                code_hpa: 3,
                omission: Omission::Combined,
            }),
            Action::Map(Mapping {
                gpa: 1,
                bytes: 2,
                hpa: 3,
                level: 4,
                writable: true,
            }),
            Action::Remove(Removal {
                gpa: 1,
                bytes: 2,
                split: true,
            }),
        ]
    }

    fn written() -> Vec<u8> {
        let mut script = Script::default();
        for action in every_action() {
            script.push(&action);
        }
        script.into_bytes()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut bytes = written();
        bytes.extend_from_slice(&[0xff; 64]);
        let read: Result<Vec<_>, _> = Actions::new(&bytes).unwrap().collect();
        assert_eq!(read.unwrap(), every_action());
    }

    #[test]
    fn every_cut_is_noticed_and_ends_the_script() {
        let bytes = written();
        for end in HEADER_BYTES..bytes.len() {
            let mut actions = Actions::new(&bytes[..end]).unwrap();
            let failed = actions.find_map(Result::err);
            assert!(
                matches!(failed, Some(Malformed::Short(_))),
                "{end}: {failed:?}"
            );
            assert!(actions.next().is_none());
        }
    }

    #[test]
    fn words_that_name_nothing_are_refused() {
        assert_eq!(
            Actions::new(&[0; 16]).unwrap_err(),
            Malformed::Magic(0),
            "no script"
        );
        let mut script = Script::default();
        script.push(&Action::Peek { at: 0 });
        let mut bytes = script.into_bytes();
        bytes[HEADER_BYTES] = 99;
        let action = Actions::new(&bytes).unwrap().next();
        assert!(matches!(
            action,
            Some(Err(Malformed::Name {
                word: 99,
                at: 16,
                ..
            }))
        ));
    }
}
