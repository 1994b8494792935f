//! A host memory manager whose every answer a test decides.
//!
//! Mappings are a list; what is behind them is a map of blocks that a test fills or that faults
//! fill. A test can make an address fail in any way that the contract knows, and can do
//! something in the middle of the next question: after the host has made up its answer, and
//! before the one who asked gets it. The value is a handle: clones are the same host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, Weak};

use slat::host::{Host, HostPage, HostView, PageKind, ResolveError, Vma};
use slat::notifier::Notifier;
use slat::table::address::{Hpa, Hva, HvaRange, PAGE_SIZE};
use slat::table::attributes::{Access, MemoryType};

/// Where the frames that faults bring begin. Far from the tables of the simulated machine.
pub(crate) const FRAMES: u64 = 0x40_0000_0000;

/// A question the host was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) hva: u64,
    pub(crate) access: Access,
    pub(crate) peek: bool,
}

/// How an address fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Busy,
    NoMemory,
    Poisoned,
    DeviceGone,
    NotPermitted,
}

/// A mapping and how faults fill it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) vma: Vma,
    /// Where it is there without a fault and linear, as a device is: the host physical address of
    /// the first byte.
    pub(crate) device: Option<u64>,
    /// The blocks that faults bring, or that one answer shows where it is linear, in bytes.
    pub(crate) block: u64,
    /// Whether a read brings a page that only a later write makes writable.
    pub(crate) copy_on_write: bool,
    /// For PFNMAP: whether the first block lies last in physical memory, the last one first.
    pub(crate) backwards: bool,
    /// For PFNMAP: the memory type of the pages, where it differs from the mapping's.
    pub(crate) page_memory: Option<MemoryType>,
}

/// What is behind some addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) bytes: u64,
    pub(crate) hpa: u64,
    pub(crate) writable: bool,
    pub(crate) memory: MemoryType,
}

type Hook = Box<dyn FnOnce(Question) + Send>;

#[derive(Default)]
struct Pages {
    blocks: BTreeMap<u64, Block>,
    failures: BTreeMap<u64, Failure>,
    questions: Vec<Question>,
    /// Where the frames begin.
    frames: u64,
    next_frame: u64,
    hook: Option<Hook>,
}

impl Pages {
    /// Puts back what of `block` at `hva` lies outside `range`, in the largest blocks.
    fn keep_outside(&mut self, range: HvaRange, hva: u64, block: Block) {
        let whole = hva_range(hva, block.bytes);
        if !range.overlaps(&whole) {
            self.blocks.insert(hva, block);
        } else if !range.covers(&whole) {
            let bytes = block.bytes / 2;
            for offset in [0, bytes] {
                let hpa = block.hpa + offset;
                let half = Block {
                    bytes,
                    hpa,
                    ..block
                };
                self.keep_outside(range, hva + offset, half);
            }
        }
    }
}

#[derive(Clone)]
pub(crate) struct ScriptedHost {
    mappings: Arc<RwLock<Vec<Mapping>>>,
    pages: Arc<Mutex<Pages>>,
}

pub(crate) fn hva_range(start: u64, bytes: u64) -> HvaRange {
    HvaRange::new(Hva::new(start), bytes).unwrap()
}

impl Mapping {
    /// Writable anonymous memory that faults bring page by page.
    pub(crate) fn ram(start: u64, bytes: u64) -> Self {
        Self {
            vma: Vma {
                range: hva_range(start, bytes),
                writable: true,
                kind: PageKind::Ram,
                memory: MemoryType::WriteBack,
            },
            device: None,
            block: PAGE_SIZE,
            copy_on_write: false,
            backwards: false,
            page_memory: None,
        }
    }

    /// Device memory at `hpa`, linear, shown whole by every answer.
    pub(crate) fn device(start: u64, bytes: u64, hpa: u64) -> Self {
        let mut mapping = Self::ram(start, bytes);
        mapping.vma.kind = PageKind::Pfnmap;
        mapping.vma.memory = MemoryType::Device;
        mapping.device = Some(hpa);
        mapping.block = 1 << 63;
        mapping
    }

    pub(crate) fn blocks(mut self, bytes: u64) -> Self {
        self.block = bytes;
        self
    }

    /// RAM that is as linear as a device.
    pub(crate) fn is_ram(mut self) -> Self {
        self.vma.kind = PageKind::Ram;
        self.vma.memory = MemoryType::WriteBack;
        self
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.vma.writable = false;
        self
    }

    pub(crate) fn memory(mut self, memory: MemoryType) -> Self {
        self.vma.memory = memory;
        self
    }

    pub(crate) fn copy_on_write(mut self) -> Self {
        self.copy_on_write = true;
        self
    }

    /// The largest naturally aligned block around `hva`, at most [`block`](Self::block) bytes,
    /// that lies inside the mapping.
    fn block_around(&self, hva: u64) -> HvaRange {
        let mut bytes = self.block;
        loop {
            let block = HvaRange::block_around(Hva::new(hva), bytes);
            match block.filter(|block| self.vma.range.covers(block)) {
                Some(block) => return block,
                None => bytes >>= 1,
            }
        }
    }

    /// What is shown around `hva` where the mapping is linear from `device` on. A host's own memory
    /// comes in natural blocks.
    fn linear_page(&self, device: u64, hva: u64) -> HostPage {
        let range = self.vma.range;
        let block = match self.vma.kind {
            PageKind::Ram => self.block_around(hva),
            PageKind::Pfnmap => HvaRange::block_around(Hva::new(hva), self.block)
                .and_then(|block| block.intersection(&range))
                .unwrap_or(range),
        };
        let offset = if self.backwards {
            range.end().raw() - block.end().raw()
        } else {
            block.start().raw() - range.start().raw()
        };
        HostPage {
            block,
            hpa: Hpa::new(device + offset),
            writable: self.vma.writable,
            kind: self.vma.kind,
            memory: self.page_memory.unwrap_or(self.vma.memory),
        }
    }
}

impl ScriptedHost {
    pub(crate) fn new(mappings: &[Mapping]) -> Self {
        Self::with_frames(FRAMES, mappings)
    }

    /// One whose frames begin at `frames`.
    pub(crate) fn with_frames(frames: u64, mappings: &[Mapping]) -> Self {
        let pages = Pages {
            frames,
            ..Pages::default()
        };
        let host = Self {
            mappings: Arc::default(),
            pages: Arc::new(Mutex::new(pages)),
        };
        for mapping in mappings {
            host.map(*mapping);
        }
        host
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap()
    }

    /// Adds a mapping where there is none.
    pub(crate) fn map(&self, mapping: Mapping) {
        let mut mappings = self.mappings.write().unwrap();
        let range = mapping.vma.range;
        assert!(
            !mappings
                .iter()
                .any(|known| known.vma.range.overlaps(&range))
        );
        mappings.push(mapping);
        mappings.sort_by_key(|mapping| mapping.vma.range.start());
    }

    /// Takes away every mapping that touches `range`, and what is behind.
    pub(crate) fn unmap(&self, range: HvaRange) {
        let mut mappings = self.mappings.write().unwrap();
        mappings.retain(|mapping| !mapping.vma.range.overlaps(&range));
        drop(mappings);
        self.discard(range);
    }

    /// Puts a block behind its addresses.
    pub(crate) fn put(&self, hva: u64, block: Block) {
        self.discard(hva_range(hva, block.bytes));
        self.pages().blocks.insert(hva, block);
    }

    /// Writable write-back memory for [`put`](Self::put).
    pub(crate) fn put_ram(&self, hva: u64, bytes: u64, hpa: u64) {
        let (writable, memory) = (true, MemoryType::WriteBack);
        self.put(
            hva,
            Block {
                bytes,
                hpa,
                writable,
                memory,
            },
        );
    }

    /// Takes the pages in `range` away; a block that is only partly inside is cut.
    pub(crate) fn discard(&self, range: HvaRange) {
        let touched = self.blocks_touching(range);
        let mut pages = self.pages();
        for block in touched {
            let start = block.start().raw();
            if let Some(block) = pages.blocks.remove(&start) {
                pages.keep_outside(range, start, block);
            }
        }
    }

    /// Cuts the block at `hva` into pieces of `bytes` in place.
    pub(crate) fn cut(&self, hva: u64, bytes: u64) {
        let mut pages = self.pages();
        let whole = pages.blocks.remove(&hva).expect("a block");
        for offset in (0..whole.bytes / bytes).map(|piece| piece * bytes) {
            let hpa = whole.hpa + offset;
            let piece = Block {
                bytes,
                hpa,
                ..whole
            };
            pages.blocks.insert(hva + offset, piece);
        }
    }

    /// The blocks of which a part lies in `range`.
    pub(crate) fn blocks_touching(&self, range: HvaRange) -> Vec<HvaRange> {
        let pages = self.pages();
        let blocks = pages.blocks.iter();
        let ranges = blocks.map(|(hva, block)| hva_range(*hva, block.bytes));
        ranges.filter(|block| block.overlaps(&range)).collect()
    }

    /// Moves the whole blocks in `range` to other frames.
    pub(crate) fn migrate(&self, range: HvaRange) {
        let mut pages = self.pages();
        let (first, mut frame) = (pages.frames, pages.next_frame);
        for (hva, block) in &mut pages.blocks {
            if range.covers(&hva_range(*hva, block.bytes)) {
                frame = frame.next_multiple_of(block.bytes);
                block.hpa = first + frame;
                frame += block.bytes;
            }
        }
        pages.next_frame = frame;
    }

    /// Takes the permission to write away from, or gives it to, the blocks that touch `range`.
    pub(crate) fn set_writable(&self, range: HvaRange, writable: bool) {
        for (hva, block) in &mut self.pages().blocks {
            if range.overlaps(&hva_range(*hva, block.bytes)) {
                block.writable = writable;
            }
        }
    }

    /// Makes every question about the page at `hva` fail.
    pub(crate) fn fail(&self, hva: u64, failure: Failure) {
        self.pages().failures.insert(hva, failure);
    }

    /// Lets every question be answered again.
    pub(crate) fn heal(&self) {
        self.pages().failures.clear();
    }

    /// Does `hook` once, between making up the next answer and giving it.
    pub(crate) fn during_next_question(&self, hook: impl FnOnce(Question) + Send + 'static) {
        self.pages().hook = Some(Box::new(hook));
    }

    /// What was asked since the last call.
    pub(crate) fn questions(&self) -> Vec<Question> {
        core::mem::take(&mut self.pages().questions)
    }

    /// The host physical address behind `hva` and whether it may be written, if present.
    pub(crate) fn look(&self, hva: u64) -> Option<(u64, bool)> {
        let page = self.page(hva)?;
        Some((
            page.hpa.raw() + (hva - page.block.start().raw()),
            page.writable,
        ))
    }

    /// Whether all of `range` is present, linear from `hpa` on, and may be written if `write`.
    pub(crate) fn shows(&self, range: HvaRange, hpa: u64, write: bool) -> bool {
        let mut rest = Some(range);
        while let Some(todo) = rest {
            let Some(page) = self.page(todo.start().raw()) else {
                return false;
            };
            let expected = hpa + (todo.start().raw() - range.start().raw());
            let found = page.hpa.raw() + (todo.start().raw() - page.block.start().raw());
            if found != expected || (write && !page.writable) {
                return false;
            }
            rest = todo.from(page.block.end());
        }
        true
    }

    fn page(&self, hva: u64) -> Option<HostPage> {
        let mapping = self.find(hva)?;
        match mapping.device {
            Some(device) => Some(mapping.linear_page(device, hva)),
            None => self.present(&mapping, hva),
        }
    }

    /// Whether the mappings are locked at this moment.
    pub(crate) fn is_locked(&self) -> bool {
        self.mappings.try_write().is_err()
    }

    fn find(&self, hva: u64) -> Option<Mapping> {
        let mappings = self.mappings.read().unwrap();
        let around = |mapping: &&Mapping| mapping.vma.range.contains(Hva::new(hva));
        mappings.iter().find(around).copied()
    }

    fn present(&self, mapping: &Mapping, hva: u64) -> Option<HostPage> {
        let pages = self.pages();
        let (start, block) = pages.blocks.range(..=hva).next_back()?;
        let range = hva_range(*start, block.bytes);
        range.contains(Hva::new(hva)).then(|| HostPage {
            block: range,
            hpa: Hpa::new(block.hpa),
            writable: block.writable && mapping.vma.writable,
            kind: mapping.vma.kind,
            memory: block.memory,
        })
    }

    /// The pages around `hva` that are not there, from `hva` to the next that is.
    fn absent(&self, mapping: &Mapping, hva: u64) -> HvaRange {
        let end = mapping.vma.range.end().raw();
        let next = self.pages().blocks.range(hva..).next().map(|(hva, _)| *hva);
        hva_range(hva, next.map_or(end, |next| next.min(end)) - hva)
    }

    /// Brings the block around `hva`, or as much of it as is still free.
    fn bring(&self, mapping: &Mapping, hva: u64, access: Access) {
        let mut range = mapping.block_around(hva);
        let mut pages = self.pages();
        let taken = |pages: &Pages, range: &HvaRange| {
            let mut below = pages.blocks.range(..range.end().raw());
            below
                .next_back()
                .is_some_and(|(hva, block)| hva + block.bytes > range.start().raw())
        };
        while taken(&pages, &range) {
            if range.bytes() == PAGE_SIZE {
                // Another thread was faster.
                return;
            }
            range = HvaRange::block_around(Hva::new(hva), range.bytes() >> 1).unwrap();
        }
        let frame = pages.next_frame.next_multiple_of(range.bytes());
        pages.next_frame = frame + range.bytes();
        let block = Block {
            bytes: range.bytes(),
            hpa: pages.frames + frame,
            writable: access == Access::Write || !mapping.copy_on_write,
            memory: mapping.vma.memory,
        };
        pages.blocks.insert(range.start().raw(), block);
    }

    fn failure(&self, at: Hva, access: Access) -> Option<ResolveError> {
        let failure = *self.pages().failures.get(&at.raw())?;
        Some(match failure {
            Failure::Busy => ResolveError::Busy(at),
            Failure::NoMemory => ResolveError::NoMemory(at),
            Failure::Poisoned => ResolveError::Poisoned(at),
            Failure::DeviceGone => ResolveError::DeviceGone(at),
            Failure::NotPermitted => ResolveError::NotPermitted { hva: at, access },
        })
    }

    fn answer(&self, mapping: Option<Mapping>, question: Question) -> Answer {
        let Question { hva, access, peek } = question;
        let at = Hva::new(hva);
        if let Some(failure) = self.failure(at, access) {
            return Err(failure);
        }
        let mapping = mapping.ok_or(ResolveError::NoVma(at))?;
        if access == Access::Write && !mapping.vma.writable {
            return Err(ResolveError::NotPermitted { hva: at, access });
        }
        if let Some(device) = mapping.device {
            return Ok(mapping.linear_page(device, hva));
        }
        let allows = |page: &HostPage| page.writable || access != Access::Write;
        if let Some(page) = self.present(&mapping, hva).filter(allows) {
            return Ok(page);
        }
        if peek {
            return Err(ResolveError::NotPresent(self.absent(&mapping, hva)));
        }
        match self.present(&mapping, hva) {
            // A gain of permission needs no notice.
            Some(page) => self.set_writable(page.block, true),
            None => self.bring(&mapping, hva, access),
        }
        Ok(self.present(&mapping, hva).expect("it was just brought"))
    }

    fn ask(&self, mapping: Option<Mapping>, question: Question) -> Answer {
        let answer = self.answer(mapping, question);
        let hook = {
            let mut pages = self.pages();
            pages.questions.push(question);
            pages.hook.take()
        };
        if let Some(hook) = hook {
            hook(question);
        }
        answer
    }
}

type Answer = Result<HostPage, ResolveError>;

/// The mappings, locked for reading.
pub(crate) struct View<'a> {
    host: &'a ScriptedHost,
    mappings: RwLockReadGuard<'a, Vec<Mapping>>,
}

impl HostView for View<'_> {
    fn find_vma(&self, hva: Hva) -> Option<Vma> {
        let ends_after = |vma: &Vma| vma.range.end() > hva;
        self.mappings
            .iter()
            .map(|mapping| mapping.vma)
            .find(ends_after)
    }

    fn peek(&self, hva: Hva, access: Access) -> Answer {
        let around = |mapping: &&Mapping| mapping.vma.range.contains(hva);
        let mapping = self.mappings.iter().find(around).copied();
        let question = Question {
            hva: hva.raw(),
            access,
            peek: true,
        };
        self.host.ask(mapping, question)
    }
}

#[expect(unsafe_code, reason = "the trait is unsafe to implement")]
// SAFETY: no memory is behind the frames of this host, so nothing can be harmed. The tests keep
// the contract by changing only what they have invalidated.
unsafe impl Host for ScriptedHost {
    type View<'a> = View<'a>;

    /// The tests themselves say what they change.
    fn register(&self, _: Weak<dyn Notifier>) {}

    fn view(&self) -> View<'_> {
        View {
            host: self,
            mappings: self.mappings.read().unwrap(),
        }
    }

    fn fault(&self, hva: Hva, access: Access) -> Answer {
        let question = Question {
            hva: hva.raw(),
            access,
            peek: false,
        };
        self.ask(self.find(hva.raw()), question)
    }
}
