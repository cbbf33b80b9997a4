//! First page tables and descriptor tables, built natively before the guest
//! runs, so that the kernel executes no privileged instruction to boot.
//!
//! Called by [`crate::loader`]. Writes guest RAM only; knows nothing of KVM.
//! Formats: SDM vol. 3 §4.5 (4-level paging), §3.4.5 (segment descriptors),
//! §6.14.1 (64-bit gates), §7.7 (64-bit TSS).

use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE, PAGE_SIZE, is_aligned};
use enclave_abi::boot::{CLAC_BYTES, GateSpec, KernelHeader, Mode};
use enclave_abi::layout::{DIRECT_MAP, SEL_KERNEL_CS, SEL_TSS, SEL_USER_CS, gdt_tss, idt};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::Ram;

/// Page-table entry bits.
pub mod pte {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 1 << 1;
    /// Reachable from ring 3.
    pub const U: u64 = 1 << 2;
    /// Cache disabled.
    pub const PCD: u64 = 1 << 4;
    /// Accessed and dirty, set beforehand so that no walk writes the entry.
    pub const AD: u64 = 1 << 5 | 1 << 6;
    /// Large page.
    pub const PS: u64 = 1 << 7;
    /// No execution.
    pub const NX: u64 = 1 << 63;
    /// Address part of an entry.
    pub const ADDR: u64 = 0x000f_ffff_ffff_f000;
}

/// Offset of the TSS in the [`gdt_tss`] page.
pub const TSS_OFFSET: u64 = 0x100;
/// Bytes of the TSS.
pub const TSS_BYTES: u64 = 104;
/// Highest valid byte of the GDT.
pub const GDT_LIMIT: u16 = 0x4f;

/// A page-table tree under construction; tables come from a bump region.
#[derive(Debug)]
pub struct TableBuilder<'a> {
    ram: &'a Ram,
    root: u64,
    next: u64,
    end: u64,
}

/// Why tables could not be built.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The region for tables is used up.
    #[error("no room for boot page tables below {0:#x}")]
    Full(u64),
    /// An address is not page aligned or a large page is already there.
    #[error("cannot map {0:#x}")]
    Unmappable(u64),
    /// Guest RAM is too small for the fixed layout.
    #[error("guest RAM is too small for the boot structures")]
    Memory(#[from] GuestMemoryError),
}

impl<'a> TableBuilder<'a> {
    /// Starts a tree whose tables lie in `[start, end)` of fresh (zero) RAM.
    ///
    /// # Errors
    /// [`TableError::Full`] when not even the root fits.
    pub fn new(ram: &'a Ram, start: u64, end: u64) -> Result<Self, TableError> {
        let mut this = Self {
            ram,
            root: 0,
            next: start,
            end,
        };
        this.root = this.table()?;
        Ok(this)
    }

    /// Guest-physical address of the top table.
    #[must_use]
    pub fn root(&self) -> u64 {
        self.root
    }

    /// First byte behind the tables made so far.
    #[must_use]
    pub fn next_free(&self) -> u64 {
        self.next
    }

    fn table(&mut self) -> Result<u64, TableError> {
        let table = self.next;
        if table
            .checked_add(PAGE_SIZE)
            .is_none_or(|end| end > self.end)
        {
            return Err(TableError::Full(self.end));
        }
        self.next += PAGE_SIZE;
        Ok(table)
    }

    /// Maps `[va, va + len)` to `[pa, pa + len)` with the largest pages, up to
    /// `largest` bytes (4 KiB, 2 MiB or 1 GiB), that addresses and rest allow.
    ///
    /// # Errors
    /// [`TableError`]; mappings made before the failure stay.
    pub fn map(
        &mut self,
        va: u64,
        pa: u64,
        len: u64,
        flags: u64,
        largest: u64,
    ) -> Result<(), TableError> {
        if !is_aligned(va | pa | len, PAGE_SIZE) {
            return Err(TableError::Unmappable(va));
        }
        let mut done = 0;
        while done < len {
            let (va, pa, left) = (va + done, pa + done, len - done);
            let (level, bytes) = [(3, GIB), (2, LARGE_PAGE_SIZE)]
                .into_iter()
                .find(|&(_, bytes)| bytes <= largest && is_aligned(va | pa, bytes) && left >= bytes)
                .unwrap_or((1, PAGE_SIZE));
            self.entry(va, pa, flags, level)?;
            done += bytes;
        }
        Ok(())
    }

    /// Writes the leaf entry at `level` (1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB).
    fn entry(&mut self, va: u64, pa: u64, flags: u64, level: u32) -> Result<(), TableError> {
        let mut table = self.root;
        for above in ((level + 1)..=4).rev() {
            table = self.descend(table, va, above)?;
        }
        let leaf = pa | flags | pte::P | pte::AD | if level > 1 { pte::PS } else { 0 };
        self.ram.write_obj(leaf, slot(table, va, level))?;
        Ok(())
    }

    fn descend(&mut self, table: u64, va: u64, level: u32) -> Result<u64, TableError> {
        let at = slot(table, va, level);
        let entry: u64 = self.ram.read_obj(at)?;
        if entry & pte::P == 0 {
            let fresh = self.table()?;
            // Upper levels allow everything; the leaf decides.
            self.ram
                .write_obj(fresh | pte::P | pte::W | pte::U | pte::AD, at)?;
            return Ok(fresh);
        }
        if entry & pte::PS != 0 {
            return Err(TableError::Unmappable(va));
        }
        Ok(entry & pte::ADDR)
    }
}

fn slot(table: u64, va: u64, level: u32) -> GuestAddress {
    GuestAddress(table + ((va >> (12 + 9 * (level - 1))) & 511) * 8)
}

/// Writes GDT and TSS of a core for `mode` into its [`gdt_tss`] page.
///
/// # Errors
/// [`TableError::Memory`] when RAM is too small.
pub fn write_gdt_tss(
    ram: &Ram,
    header: &KernelHeader,
    mode: Mode,
    core: usize,
) -> Result<(), TableError> {
    let page = gdt_tss(core);
    let stacks = core as u64 * header.shared.stack_stride;
    let tss_va = DIRECT_MAP + page + TSS_OFFSET;
    let limit = TSS_BYTES - 1;
    let low = limit | (tss_va & 0xff_ffff) << 16 | 0x8b << 40 | (tss_va >> 24 & 0xff) << 56;
    let gdt: [u64; 10] = [
        0,
        0,
        0x00af_9b00_0000_ffff, // 0x10 kernel code, 64 bit
        0x00cf_9300_0000_ffff, // 0x18 kernel data
        0x00cf_fb00_0000_ffff, // 0x20 user code, 32 bit (SYSRET's base)
        0x00cf_f300_0000_ffff, // 0x28 user data
        0x00af_fb00_0000_ffff, // 0x30 user code, 64 bit
        0,
        low, // 0x40 TSS, busy
        tss_va >> 32,
    ];
    for (index, entry) in (0u64..).zip(gdt) {
        ram.write_obj(entry, GuestAddress(page + index * 8))?;
    }
    let tss = page + TSS_OFFSET;
    let rsp0 = match mode {
        Mode::Ring0 => header.rsp0,
        Mode::Ring3 => header.shared.ist4,
    };
    ram.write_obj(rsp0.wrapping_add(stacks), GuestAddress(tss + 4))?;
    for (index, top) in (0u64..).zip(header.ist) {
        ram.write_obj(top.wrapping_add(stacks), GuestAddress(tss + 36 + index * 8))?;
    }
    // An I/O bitmap base beyond the limit: no port is open to ring 3.
    let bitmap_base: u16 = 104;
    ram.write_obj(bitmap_base, GuestAddress(tss + 102))?;
    Ok(())
}

/// The 16 bytes of a 64-bit gate.
#[must_use]
pub fn gate(spec: &GateSpec) -> [u64; 2] {
    if spec.addr == 0 {
        return [0, 0];
    }
    // Ring-3 entries use trap gates: an interrupt gate would clear IF, and
    // ring 3 could never set it again.
    let (selector, kind) = if spec.ring == 3 {
        (SEL_USER_CS, 0xf)
    } else {
        (SEL_KERNEL_CS, 0xe)
    };
    let flags = 0x80 | u64::from(spec.dpl & 3) << 5 | kind;
    let low = spec.addr & 0xffff
        | u64::from(selector) << 16
        | u64::from(spec.ist & 7) << 32
        | flags << 40
        | (spec.addr >> 16 & 0xffff) << 48;
    [low, spec.addr >> 32]
}

/// Writes the interrupt descriptor table of core `core` of `nr_cores` for `mode`.
/// With `smap`, which is for
/// ring-0 mode, gates lead to the CLAC in front of each entry.
///
/// # Errors
/// [`TableError::Memory`] when RAM is too small.
pub fn write_idt(
    ram: &Ram,
    header: &KernelHeader,
    mode: Mode,
    smap: bool,
    (core, nr_cores): (usize, usize),
) -> Result<(), TableError> {
    let gates = match (mode, nr_cores) {
        (Mode::Ring0, 0 | 1) => &header.gates_ring0,
        (Mode::Ring3, 0 | 1) => &header.gates_ring3,
        (Mode::Ring0, _) => &header.shared.gates_ring0,
        (Mode::Ring3, _) => &header.shared.gates_ring3,
    };
    let table = idt(core);
    for (vector, spec) in (0u64..).zip(gates) {
        let prologue = if smap { CLAC_BYTES } else { 0 };
        let [low, high] = gate(&GateSpec {
            addr: match spec.addr.saturating_sub(prologue) {
                0 => 0,
                first => first.wrapping_add(core as u64 * u64::from(spec.stride)),
            },
            ..*spec
        });
        ram.write_obj(low, GuestAddress(table + vector * 16))?;
        ram.write_obj(high, GuestAddress(table + vector * 16 + 8))?;
    }
    Ok(())
}

const _: () = assert!(SEL_TSS as u64 + 16 == GDT_LIMIT as u64 + 1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Backing;
    use crate::memory::PrivateRam;

    fn walk(ram: &Ram, root: u64, va: u64) -> Option<(u64, u64)> {
        let mut table = root;
        for level in (1..=4).rev() {
            let entry: u64 = ram.read_obj(slot(table, va, level)).unwrap();
            if entry & pte::P == 0 {
                return None;
            }
            if level == 1 || entry & pte::PS != 0 {
                return Some((entry, 1 << (12 + 9 * (level - 1))));
            }
            table = entry & pte::ADDR;
        }
        None
    }

    #[test]
    fn large_pages_are_used_only_where_everything_is_aligned() {
        let ram = PrivateRam::new(32 << 20, Backing::Small, false)
            .unwrap()
            .ram;
        let mut builder = TableBuilder::new(&ram, 0x40_0000, 0x60_0000).unwrap();
        builder
            .map(
                0xffff_9000_0000_0000,
                0,
                5 << 20,
                pte::W | pte::NX,
                LARGE_PAGE_SIZE,
            )
            .unwrap();
        let root = builder.root();
        let (entry, size) = walk(&ram, root, 0xffff_9000_0020_0000).unwrap();
        assert_eq!((entry & 0xf_f000 << 8, size), (0x20_0000, LARGE_PAGE_SIZE));
        let (entry, size) = walk(&ram, root, 0xffff_9000_0040_1000).unwrap();
        assert_eq!((entry & pte::ADDR, size), (0x40_1000, PAGE_SIZE));
        assert!(walk(&ram, root, 0xffff_9000_0050_0000).is_none());
    }

    #[test]
    fn a_whole_gib_takes_one_entry_where_that_is_allowed() {
        let ram = PrivateRam::new(32 << 20, Backing::Small, false)
            .unwrap()
            .ram;
        let mut builder = TableBuilder::new(&ram, 0x40_0000, 0x60_0000).unwrap();
        let va = 0xffff_9000_4000_0000 - LARGE_PAGE_SIZE;
        let len = GIB + 2 * LARGE_PAGE_SIZE;
        builder
            .map(va, GIB - LARGE_PAGE_SIZE, len, pte::W, GIB)
            .unwrap();
        let root = builder.root();
        let sizes = [va, va + LARGE_PAGE_SIZE, va + len - PAGE_SIZE]
            .map(|va| walk(&ram, root, va).unwrap().1);
        assert_eq!(sizes, [LARGE_PAGE_SIZE, GIB, LARGE_PAGE_SIZE]);
        let (entry, _) = walk(&ram, root, va + LARGE_PAGE_SIZE).unwrap();
        assert_eq!(entry & pte::ADDR, GIB);
    }

    #[test]
    fn a_full_table_region_is_an_error() {
        let ram = PrivateRam::new(32 << 20, Backing::Small, false)
            .unwrap()
            .ram;
        let mut builder = TableBuilder::new(&ram, 0x40_0000, 0x40_2000).unwrap();
        assert!(matches!(
            builder.map(0, 0, PAGE_SIZE, 0, PAGE_SIZE),
            Err(TableError::Full(_))
        ));
    }

    #[test]
    fn ring3_gates_are_trap_gates_into_user_code() {
        let spec = GateSpec {
            addr: 0xffff_ffff_8020_1234,
            ist: 1,
            ring: 3,
            ..GateSpec::default()
        };
        let [low, high] = gate(&spec);
        assert_eq!(low >> 16 & 0xffff, 0x33);
        assert_eq!(low >> 40 & 0xff, 0x8f);
        assert_eq!(low >> 32 & 7, 1);
        assert_eq!((low & 0xffff) | (low >> 48) << 16 | high << 32, spec.addr);
        assert_eq!(gate(&GateSpec::default()), [0, 0]);
    }
}
