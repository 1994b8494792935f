//! From casemate's records to ours.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead};

use crate::address::Hpa;
use crate::arm64;
use crate::event::{Cpu, Event, Instruction, Record, Registers, Vm, WriteKind};
use crate::trace::{Reason, TraceError};

/// The longest record, in bytes.
const LONGEST_RECORD: usize = 4096;
const PAGE: u64 = 0x1000;
/// The most pages that one record may concern.
const MOST_PAGES: u64 = 1 << 16;

/// Why a record cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is longer than any record.
    #[error("longer than {LONGEST_RECORD} bytes")]
    TooLong,
    /// It is not in parentheses, or those do not match.
    #[error("`{0}` where a record in parentheses is expected")]
    Parentheses(char),
    /// It ends before it is complete.
    #[error("the record ends too early")]
    Incomplete,
    /// A field is not there.
    #[error("no field `{0}`")]
    NoField(&'static str),
    /// A field's value is none.
    #[error("`{value}` is no {field}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// Registers point to a tree whose shape was not said.
    #[error("vttbr_el2 is written before vtcr_el2")]
    NoShape,
}

/// The records of a trace in casemate's format. Ends after the first error.
#[derive(Debug)]
pub struct Importer<R> {
    from: R,
    line: u64,
    /// Records that one of theirs became.
    ready: VecDeque<Record>,
    ended: bool,
    state: State,
}

/// Reads a trace in casemate's format. What has no meaning here (reads, hints, the hypervisor's
/// own stage 1) is left out. A `trylock` is one that succeeded. A trace that says nothing of host
/// and guest is judged by the rules of tables alone.
pub fn read<R: BufRead>(from: R) -> Importer<R> {
    read_from_line(from, 0)
}

pub(crate) fn read_from_line<R: BufRead>(from: R, line: u64) -> Importer<R> {
    Importer {
        from,
        line,
        ready: VecDeque::new(),
        ended: false,
        state: State::default(),
    }
}

impl<R: BufRead> Iterator for Importer<R> {
    type Item = Result<Record, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(record));
            }
            if self.ended {
                return None;
            }
            match self.import_one() {
                Ok(true) => {}
                Ok(false) => self.ended = true,
                Err(reason) => {
                    self.ended = true;
                    let line = self.line + 1;
                    return Some(Err(TraceError { line, reason }));
                }
            }
        }
    }
}

impl<R: BufRead> Importer<R> {
    fn import_one(&mut self) -> Result<bool, Reason> {
        let Some(text) = self.next_record()? else {
            return Ok(false);
        };
        let mut fields = Fields::new(&text);
        self.state.import(&mut fields, &mut self.ready)?;
        Ok(true)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.from.fill_buf()?.first().copied();
        if let Some(byte) = byte {
            self.from.consume(1);
            self.line += u64::from(byte == b'\n');
        }
        Ok(byte)
    }

    /// The text between the outer parentheses of the next record. The checker's own remarks, which
    /// begin with an exclamation mark, end a trace.
    fn next_record(&mut self) -> Result<Option<String>, Reason> {
        let first = loop {
            match self.byte()? {
                None | Some(b'!') => return Ok(None),
                Some(byte) if byte.is_ascii_whitespace() => {}
                Some(byte) => break byte,
            }
        };
        if first != b'(' {
            return Err(ImportError::Parentheses(char::from(first)).into());
        }
        let mut text = String::new();
        let (mut depth, mut quoted) = (1_u32, false);
        loop {
            let byte = self.byte()?.ok_or(ImportError::Incomplete)?;
            match byte {
                b'"' => quoted = !quoted,
                b'(' if !quoted => depth += 1,
                b')' if !quoted => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(Some(text));
            }
            if text.len() >= LONGEST_RECORD {
                return Err(ImportError::TooLong.into());
            }
            text.push(char::from(byte));
        }
    }
}

/// The words of a record. A field is a word by itself or with its name in parentheses.
struct Fields<'t> {
    words: Box<dyn Iterator<Item = &'t str> + 't>,
}

impl<'t> Fields<'t> {
    fn new(text: &'t str) -> Self {
        let separates = |c: char| c.is_ascii_whitespace() || c == '(' || c == ')';
        Self {
            words: Box::new(text.split(separates).filter(|word| !word.is_empty())),
        }
    }

    fn word(&mut self, field: &'static str) -> Result<&'t str, ImportError> {
        let word = self.words.next().ok_or(ImportError::NoField(field))?;
        if word == field {
            self.words.next().ok_or(ImportError::NoField(field))
        } else {
            Ok(word)
        }
    }

    fn number(&mut self, field: &'static str, radix: u32) -> Result<u64, ImportError> {
        let word = self.word(field)?;
        let digits = match radix {
            16 => word.strip_prefix("0x").unwrap_or(word),
            _ => word,
        };
        u64::from_str_radix(digits, radix).map_err(|_| ImportError::Value {
            field,
            value: word.to_owned(),
        })
    }

    fn hex(&mut self, field: &'static str) -> Result<u64, ImportError> {
        self.number(field, 16)
    }
}

/// What records before said.
#[derive(Debug, Default)]
struct State {
    vtcr: Option<u64>,
    force_write_back: bool,
    current: BTreeMap<Cpu, Vm>,
}

impl State {
    fn import(
        &mut self,
        fields: &mut Fields<'_>,
        to: &mut VecDeque<Record>,
    ) -> Result<(), ImportError> {
        let operation = fields.word("operation")?;
        let step = fields.number("id", 10)?;
        let tid = fields.number("tid", 10)?;
        let cpu = Cpu::try_from(tid).map_err(|_| ImportError::Value {
            field: "tid",
            value: tid.to_string(),
        })?;
        let events = self.events(operation, cpu, fields)?;
        to.extend(events.into_iter().map(|event| Record { step, cpu, event }));
        Ok(())
    }

    fn events(
        &mut self,
        operation: &str,
        cpu: Cpu,
        fields: &mut Fields<'_>,
    ) -> Result<Vec<Event>, ImportError> {
        match operation {
            "mem-init" => pages(fields, |table| Event::TableAllocated { table, bytes: PAGE }),
            "mem-free" => pages(fields, |table| Event::TableFreed { table, bytes: PAGE }),
            "mem-set" => set(fields),
            "mem-write" => Ok(vec![write(fields)?]),
            "sysreg-write" => self.register(cpu, fields),
            "barrier" => self.barrier(cpu, fields),
            "tlbi" => self.invalidation(cpu, fields),
            "lock" | "trylock" => Ok(vec![Event::Locked {
                lock: fields.hex("address")?,
            }]),
            "unlock" => Ok(vec![Event::Unlocked {
                lock: fields.hex("address")?,
            }]),
            "mem-read" | "hint" => Ok(vec![]),
            other => Err(ImportError::Value {
                field: "operation",
                value: other.to_owned(),
            }),
        }
    }

    fn register(&mut self, cpu: Cpu, fields: &mut Fields<'_>) -> Result<Vec<Event>, ImportError> {
        let register = fields.word("sysreg")?;
        let value = fields.hex("value")?;
        match register {
            "vtcr_el2" => self.vtcr = Some(value),
            "hcr_el2" => self.force_write_back = value >> 46 & 1 != 0,
            "vttbr_el2" => {
                let vm = (value >> 48) as Vm;
                self.current.insert(cpu, vm);
                let registers = Registers::Arm64(arm64::Registers {
                    vttbr: value,
                    vtcr: whole_vtcr(self.vtcr.ok_or(ImportError::NoShape)?),
                    force_write_back: self.force_write_back,
                });
                return Ok(vec![Event::Registers { vm, registers }]);
            }
            _ => {}
        }
        Ok(vec![])
    }

    fn instruction(&self, cpu: Cpu, instruction: arm64::Instruction) -> Event {
        Event::Instruction {
            vm: self.current.get(&cpu).copied().unwrap_or(0),
            instruction: Instruction::Arm64(instruction),
        }
    }

    fn barrier(&self, cpu: Cpu, fields: &mut Fields<'_>) -> Result<Vec<Event>, ImportError> {
        use arm64::Instruction as I;
        let instruction = match fields.word("barrier")? {
            "isb" => I::Isb,
            "dsb" => match fields.word("kind")? {
                "ish" => I::DsbIsh,
                "ishst" => I::DsbIshst,
                "nsh" => I::DsbNsh,
                other => return Err(unknown("kind", other)),
            },
            other => return Err(unknown("barrier", other)),
        };
        Ok(vec![self.instruction(cpu, instruction)])
    }

    fn invalidation(&self, cpu: Cpu, fields: &mut Fields<'_>) -> Result<Vec<Event>, ImportError> {
        use arm64::Instruction as I;
        let instruction = match fields.word("tlbi")? {
            "vmalls12e1is" => I::Vmalls12e1is,
            "vmalls12e1" => I::Vmalls12e1,
            "vmalle1is" => I::Vmalle1is,
            "vmalle1" => I::Vmalle1,
            "ipas2e1is" => {
                let operand = fields.hex("value")?;
                I::Ipas2e1is { operand }
            }
            "alle1is" => {
                let mut vms: Vec<Vm> = self.current.values().copied().collect();
                vms.sort_unstable();
                vms.dedup();
                let instruction = Instruction::Arm64(I::Vmalls12e1is);
                let of = |vm| Event::Instruction { vm, instruction };
                return Ok(vms.into_iter().map(of).collect());
            }
            // One CPU's, or the hypervisor's own translations.
            "alle1" | "alle2" | "alle2is" | "vae2is" | "vale2is" => return Ok(vec![]),
            other => return Err(unknown("tlbi", other)),
        };
        Ok(vec![self.instruction(cpu, instruction)])
    }
}

fn unknown(field: &'static str, value: &str) -> ImportError {
    let value = value.to_owned();
    ImportError::Value { field, value }
}

fn write(fields: &mut Fields<'_>) -> Result<Event, ImportError> {
    let kind = match fields.word("mem-order")? {
        "plain" => WriteKind::Plain,
        "release" => WriteKind::Release,
        other => return Err(unknown("mem-order", other)),
    };
    let entry = Hpa(fields.hex("address")?);
    let value = fields.hex("value")?;
    Ok(Event::Write { entry, value, kind })
}

/// First byte and size of page-aligned memory.
fn memory(fields: &mut Fields<'_>) -> Result<(u64, u64), ImportError> {
    let address = fields.hex("address")?;
    let size = fields.hex("size")?;
    let whole = address.is_multiple_of(PAGE) && size.is_multiple_of(PAGE);
    let sound = whole && size / PAGE <= MOST_PAGES && address.checked_add(size).is_some();
    if sound {
        Ok((address, size))
    } else {
        Err(unknown("size", &format!("{size:#x}")))
    }
}

fn pages(fields: &mut Fields<'_>, event: impl Fn(Hpa) -> Event) -> Result<Vec<Event>, ImportError> {
    let (address, size) = memory(fields)?;
    let starts = (0..size / PAGE).map(|page| Hpa(address + page * PAGE));
    Ok(starts.map(event).collect())
}

fn set(fields: &mut Fields<'_>) -> Result<Vec<Event>, ImportError> {
    let (address, size) = memory(fields)?;
    let value = fields.hex("value")?;
    let byte = u8::try_from(value).map_err(|_| unknown("value", &format!("{value:#x}")))?;
    let value = u64::from_ne_bytes([byte; 8]);
    let kind = WriteKind::Plain;
    let entries = (0..size / 8).map(|index| Hpa(address + index * 8));
    Ok(entries
        .map(|entry| Event::Write { entry, value, kind })
        .collect())
}

/// The checker looks at `VTCR_EL2.T0SZ` alone, so traces made for it may have nothing else there.
/// Such a value lacks bit 31, which is `RES1`; it gets the start level that the checker takes it to
/// have (`SL0`), and the widest output addresses (`PS`).
fn whole_vtcr(vtcr: u64) -> u64 {
    const RES1: u64 = 1 << 31;
    const WIDEST: u64 = 0b101 << 16;
    if vtcr & RES1 != 0 {
        return vtcr;
    }
    let sl0 = match 64 - (vtcr & 0x3f) {
        0..=30 => 0,
        31..=39 => 1,
        _ => 2,
    };
    vtcr & 0x3f | sl0 << 6 | WIDEST | RES1
}
