//! What the VMM and the kernel tell each other once, at boot.
//!
//! [`KernelHeader`] stands at the start of the kernel image and gives the VMM
//! every address it needs to set up the machine natively (descriptor tables,
//! system-call entry, stacks), so that the kernel runs no privileged
//! instruction to start. [`BootInfo`] goes the other way.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `"XASMKRNL"` in little endian: first word of the kernel image.
pub const KERNEL_MAGIC: u64 = u64::from_le_bytes(*b"XASMKRNL");
/// `"XASMBOOT"` in little endian: first word of [`BootInfo`].
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"XASMBOOT");

/// Vectors that the kernel's gate tables describe (0..=0x41).
pub const NR_GATES: usize = 0x42;

/// Most cores of an enclave: the kernel image has so many entries.
pub const MAX_CORES: usize = 32;

/// Bytes of the CLAC in front of each entry of [`KernelHeader::gates_ring0`]: a
/// gate leads there where SMAP is on.
pub const CLAC_BYTES: u64 = 3;

/// One interrupt gate the kernel wants; `addr` 0 means none.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GateSpec {
    /// Virtual address of the entry.
    pub addr: u64,
    /// Interrupt stack table index (0 = none).
    pub ist: u8,
    /// Privilege level the entry runs in: 0 or 3.
    pub ring: u8,
    /// Lowest privilege that may call the gate by instruction.
    pub dpl: u8,
    /// Bytes from one core's entry to the next one's; 0 = one for all.
    pub stride: u8,
    /// Padding, zero.
    pub pad: [u8; 4],
}

/// First bytes of the kernel image, written by `entry.S`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelHeader {
    /// [`KERNEL_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`] the kernel was built with.
    pub abi_version: u32,
    /// `size_of::<KernelHeader>()`.
    pub header_bytes: u32,
    /// First instruction; RDI = virtual address of [`BootInfo`].
    pub entry: u64,
    /// Stack the first instruction runs on (top).
    pub boot_stack: u64,
    /// Ring-0 stack of the TSS (RSP0, top) in ring-0 mode.
    pub rsp0: u64,
    /// Interrupt stack tables 1..=3 (tops): #PF, interrupts, fatal.
    pub ist: [u64; 3],
    /// System-call entry for ring-0 mode on hardware.
    pub lstar_ring0: u64,
    /// System-call entry for ring-0 mode where SYSCALL stays in ring 3.
    pub lstar_ring0_nested: u64,
    /// System-call entry for ring-3 mode where SYSCALL stays in ring 3.
    pub lstar_ring3: u64,
    /// System-call entry for ring-3 mode on hardware: in ring 0, supervisor-only.
    pub lstar_ring3_hardware: u64,
    /// Ends (exclusive) of the image's text, read-only data and writable data,
    /// virtual, page aligned; the image starts at [`crate::layout::KERNEL_VIRT`].
    pub text_end: u64,
    /// See `text_end`.
    pub rodata_end: u64,
    /// See `text_end`; includes zero-initialised data.
    pub data_end: u64,
    /// Gates for ring-0 mode.
    pub gates_ring0: [GateSpec; NR_GATES],
    /// Gates for ring-3 mode.
    pub gates_ring3: [GateSpec; NR_GATES],
    /// The page (virtual, page aligned) that holds code ring 3 must reach in
    /// ring-0 mode where SYSCALL stays in ring 3.
    pub user_text: u64,
    /// The page (virtual, page aligned) of the ring-0 stubs of ring-3 mode; it
    /// stays supervisor-only in both modes because SMEP is on.
    pub ring0_text: u64,
    /// What an enclave of several cores uses instead.
    pub shared: SharedEntries,
}

/// Entries of a kernel with several cores: they take its lock. Addresses are
/// those of core 0; stacks and stubs of core `n` are `n` strides further.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedEntries {
    /// First instruction of the cores from 1 on; RDI = 0.
    pub entry: u64,
    /// In ring-3 mode the ring-0 stack of the TSS (RSP0, top), which interrupts of
    /// other cores use, and nothing else.
    pub ist4: u64,
    /// Bytes from a core's stacks to those of the next. The first core's are the
    /// end of the image; the VMM puts the others behind it.
    pub stack_stride: u64,
    /// As [`KernelHeader::lstar_ring0`]; a stride apart for each core.
    pub lstar_ring0: u64,
    /// As [`KernelHeader::lstar_ring3`]; a stride apart for each core.
    pub lstar_ring3: u64,
    /// As [`KernelHeader::lstar_ring3_hardware`]; a stride apart for each core.
    pub lstar_ring3_hardware: u64,
    /// Bytes from a core's system-call entry to the next one's.
    pub lstar_stride: u64,
    /// Gates for ring-0 mode.
    pub gates_ring0: [GateSpec; NR_GATES],
    /// Gates for ring-3 mode.
    pub gates_ring3: [GateSpec; NR_GATES],
}

/// Privilege mode of the kernel, fixed at boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// The kernel runs in ring 0, protected from its programs.
    Ring0 = 0,
    /// The kernel runs in ring 3, for hosts that interpret ring 0.
    Ring3 = 3,
}

impl TryFrom<u32> for Mode {
    type Error = u32;
    fn try_from(value: u32) -> Result<Self, u32> {
        match value {
            0 => Ok(Self::Ring0),
            3 => Ok(Self::Ring3),
            other => Err(other),
        }
    }
}

/// [`BootInfo::flags`]: SYSCALL arrives at LSTAR still in ring 3.
pub const BOOT_SYSCALL_STAYS_IN_RING3: u64 = 1 << 0;
/// [`BootInfo::flags`]: ring-0 code of the guest is interpreted.
pub const BOOT_RING0_INTERPRETED: u64 = 1 << 1;
/// [`BootInfo::flags`]: flush by the architectural CR3 reload even where an
/// upper-level store would do (ring-3 mode).
pub const BOOT_FORCE_CR3_FLUSH: u64 = 1 << 2;

/// Processor features in force, bits of [`BootInfo::cpu_features`]. The VMM sets
/// the control registers; the kernel only needs to know.
pub mod cpu {
    /// Ring 0 cannot execute what ring 3 can (SDM vol. 3 §4.6).
    pub const SMEP: u64 = 1 << 0;
    /// Ring 0 touches what ring 3 can only between STAC and CLAC (§4.6).
    pub const SMAP: u64 = 1 << 1;
    /// Ring 3 cannot read descriptor-table registers (§2.5, CR4.UMIP).
    pub const UMIP: u64 = 1 << 2;
    /// Pages without the right to execute (§4.6).
    pub const NX: u64 = 1 << 3;
    /// Tagged translations (§4.10.1).
    pub const PCID: u64 = 1 << 4;
    /// 1 GiB pages (§4.5.4).
    pub const PAGE_1G: u64 = 1 << 5;
    /// The local APIC is reached by MSRs, not by its page (§12.12).
    pub const X2APIC: u64 = 1 << 6;
    /// Ring 3 reads and writes FS and GS bases.
    pub const FSGSBASE: u64 = 1 << 7;

    /// Every feature with the name users see.
    pub const NAMES: [(u64, &str); 8] = [
        (SMEP, "smep"),
        (SMAP, "smap"),
        (UMIP, "umip"),
        (NX, "nx"),
        (PCID, "pcid"),
        (PAGE_1G, "page1g"),
        (X2APIC, "x2apic"),
        (FSGSBASE, "fsgsbase"),
    ];
}

/// Number of memory extents in [`BootInfo`].
pub const MAX_EXTENTS: usize = 8;

/// A piece of guest-physical RAM.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length in bytes; 0 = unused entry.
    pub len_bytes: u64,
}

/// Everything the kernel is told at boot. One page, written by the VMM before
/// the first instruction and never changed.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// [`crate::ABI_VERSION`] of the VMM.
    pub abi_version: u32,
    /// [`Mode`] as a number.
    pub mode: u32,
    /// `BOOT_*` bits.
    pub flags: u64,
    /// First guest-physical byte after image and boot page tables.
    pub free_start: u64,
    /// Guest-physical address of the top page table (CR3).
    pub page_table: u64,
    /// RAM, ascending, disjoint.
    pub extents: [Extent; MAX_EXTENTS],
    /// Guest TSC at the moment `unix_ns` was read.
    pub tsc_base: u64,
    /// Wall-clock time in nanoseconds since 1970 at `tsc_base`.
    pub unix_ns: u64,
    /// Host monotonic clock in nanoseconds at `tsc_base`.
    pub monotonic_ns: u64,
    /// TSC frequency in kHz.
    pub tsc_khz: u64,
    /// Extended control register 0 as the VMM set it.
    pub xcr0: u64,
    /// CPUID leaf 1 EDX, for AT_HWCAP.
    pub hwcap: u64,
    /// AT_HWCAP2 bits (bit 1: FSGSBASE usable in ring 3).
    pub hwcap2: u64,
    /// Random bytes for AT_RANDOM.
    pub random: [u8; 32],
    /// Self-test to run instead of serving commands; 0 = none.
    pub selftest: u32,
    /// Number of cores that the enclave may have.
    pub nr_cpus: u32,
    /// Enclave name, UTF-8, zero padded.
    pub name: [u8; 64],
    /// Bits of [`cpu`].
    pub cpu_features: u64,
    /// Number of cores that it has now: the first ones of those.
    pub nr_online: u32,
    /// Padding.
    pub pad: u32,
}

const _: () = assert!(size_of::<GateSpec>() == 16);
const _: () = assert!(size_of::<BootInfo>() <= 4096);
const _: () = assert!(size_of::<KernelHeader>() == 8 * (17 + 7) + 4 * NR_GATES * 16);
