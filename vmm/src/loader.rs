//! Places kernel image, first page tables, descriptor tables and BootInfo.
//!
//! Called once per machine, before the vCPU exists. After it, the vCPU needs
//! registers only ([`crate::vcpu`]). The image is trusted no further than its
//! header can be checked: magic, version, every address inside the image.

use std::fs::File;
use std::path::{Path, PathBuf};

use enclave_abi::ABI_VERSION;
use enclave_abi::addr::{GIB, LARGE_PAGE_SIZE, PAGE_SIZE, align_up};
use enclave_abi::boot::{
    BOOT_MAGIC, BootInfo, Extent, KERNEL_MAGIC, KernelHeader, MAX_CORES, MAX_EXTENTS, Mode, cpu,
};
use enclave_abi::layout::{
    APIC_PAGE, BOOT_INFO, DIRECT_MAP, DOORBELL_PAGE, KERNEL_IMAGE, KERNEL_VIRT, LEASE_PAGE,
    gdt_tss, idt,
};
use enclave_abi::queue::{QUEUE_MAGIC, QueuePage};
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

use crate::features::Features;
use crate::memory::Ram;
use crate::tables::{TableBuilder, TableError, pte, write_gdt_tss, write_idt};

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The image cannot be opened.
    #[error("cannot open kernel image {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// linux-loader refused the image.
    #[error("{path} is no loadable ELF kernel: {reason}")]
    Elf {
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// The image has no valid header of ours.
    #[error("{path} is not an enclave kernel: {reason}")]
    Header {
        /// Which file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// Tables do not fit.
    #[error(transparent)]
    Table(#[from] TableError),
    /// RAM is too small.
    #[error("guest RAM is too small for the kernel")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Facts of the platform that go into BootInfo.
#[derive(Clone, Debug)]
pub struct BootFacts {
    /// Privilege mode chosen.
    pub mode: Mode,
    /// `BOOT_*` flags.
    pub flags: u64,
    /// Enclave name.
    pub name: String,
    /// Extents of RAM (start, bytes).
    pub extents: Vec<(u64, u64)>,
    /// XCR0 the vCPU gets.
    pub xcr0: u64,
    /// CPUID leaf 1 EDX.
    pub hwcap: u64,
    /// Processor features in force.
    pub features: Features,
    /// TSC frequency.
    pub tsc_khz: u64,
    /// Guest TSC, wall clock and monotonic clock read together.
    pub clock: (u64, u64, u64),
    /// Self-test to run; 0 = none.
    pub selftest: u32,
    /// Random bytes.
    pub random: [u8; 32],
    /// Cores of the enclave.
    pub nr_cores: usize,
    /// Cores that it has at boot.
    pub nr_online: usize,
}

/// What the vCPU set-up needs to know.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// The image's header, checked.
    pub header: KernelHeader,
    /// Guest-physical address of the top page table.
    pub page_table: u64,
}

/// Loads the image alone and checks its header.
///
/// # Errors
/// [`LoadError`] names file and reason.
pub fn load_image(ram: &Ram, path: &Path) -> Result<KernelHeader, LoadError> {
    let mut file = File::open(path).map_err(|source| LoadError::Open {
        path: path.into(),
        source,
    })?;
    Elf::load(ram, None, &mut file, Some(GuestAddress(KERNEL_IMAGE))).map_err(|error| {
        LoadError::Elf {
            path: path.into(),
            reason: error.to_string(),
        }
    })?;
    let mut bytes = [0; size_of::<KernelHeader>()];
    ram.read_slice(&mut bytes, GuestAddress(KERNEL_IMAGE))?;
    let header_error = |reason: String| LoadError::Header {
        path: path.into(),
        reason,
    };
    let header = KernelHeader::read_from_bytes(&bytes)
        .map_err(|_| header_error("header is cut short".into()))?;
    check_header(&header).map_err(header_error)?;
    Ok(header)
}

/// Checks everything the VMM relies on in a header.
fn check_header(header: &KernelHeader) -> Result<(), String> {
    if header.magic != KERNEL_MAGIC {
        return Err(format!("magic is {:#x}", header.magic));
    }
    if header.abi_version != ABI_VERSION {
        return Err(format!(
            "it speaks ABI version {}, this VMM speaks {ABI_VERSION}",
            header.abi_version
        ));
    }
    if header.header_bytes as usize != size_of::<KernelHeader>() {
        return Err(format!(
            "its header has {} bytes, this VMM expects {}",
            header.header_bytes,
            size_of::<KernelHeader>()
        ));
    }
    let ends = [header.text_end, header.rodata_end, header.data_end];
    let ordered = KERNEL_VIRT < ends[0] && ends[0] <= ends[1] && ends[1] <= ends[2];
    if !ordered || ends.iter().any(|end| end % PAGE_SIZE != 0) || ends[2] - KERNEL_VIRT > 64 << 20 {
        return Err("its sections are out of order".into());
    }
    let text = KERNEL_VIRT..header.text_end;
    let entries = [
        header.entry,
        header.lstar_ring0,
        header.lstar_ring0_nested,
        header.lstar_ring3,
        header.lstar_ring3_hardware,
        header.shared.entry,
    ];
    let stubs = [
        header.shared.lstar_ring0,
        header.shared.lstar_ring3,
        header.shared.lstar_ring3_hardware,
    ];
    let past = |first: u64| {
        let bytes = header.shared.lstar_stride.checked_mul(MAX_CORES as u64);
        bytes.and_then(|bytes| first.checked_add(bytes))
    };
    let holds = |stub: &u64| text.contains(stub) && past(*stub).is_some_and(|end| end <= text.end);
    if !stubs.iter().all(holds) {
        return Err("the entries of its cores lie outside its text".into());
    }
    if header.shared.stack_stride == 0
        || !header.shared.stack_stride.is_multiple_of(PAGE_SIZE)
        || header.shared.stack_stride > 1 << 20
    {
        return Err("the stacks of its cores are out of order".into());
    }
    if entries.iter().any(|entry| !text.contains(entry)) {
        return Err("an entry point lies outside its text".into());
    }
    Ok(())
}

/// Builds everything behind the image: page tables, descriptor tables, queue
/// header, BootInfo.
///
/// # Errors
/// [`LoadError`] when RAM is too small.
pub fn prepare(
    ram: &Ram,
    header: KernelHeader,
    facts: &BootFacts,
) -> Result<LoadedKernel, LoadError> {
    let image_end = data_end(&header, facts) - KERNEL_VIRT + KERNEL_IMAGE;
    let total: u64 = facts.extents.iter().map(|&(_, len)| len).sum();
    let tables_end = image_end + (64 + total / (1 << 30) + 2) * PAGE_SIZE;
    let mut builder = TableBuilder::new(ram, image_end, tables_end)?;
    map_kernel(&mut builder, &header, facts)?;
    let page_table = builder.root();
    let free_start = align_up(builder.next_free(), PAGE_SIZE).unwrap_or(tables_end);

    let smap = facts.features.has(cpu::SMAP);
    for core in 0..facts.nr_cores {
        write_gdt_tss(ram, &header, facts.mode, core)?;
        write_idt(ram, &header, facts.mode, smap, (core, facts.nr_cores))?;
    }
    write_queue(ram)?;
    let info = boot_info(facts, page_table, free_start);
    ram.write_slice(
        zerocopy::IntoBytes::as_bytes(&info),
        GuestAddress(BOOT_INFO),
    )?;
    Ok(LoadedKernel { header, page_table })
}

/// The end of the image with the stacks of all cores behind it.
fn data_end(header: &KernelHeader, facts: &BootFacts) -> u64 {
    // Bounded by `check_header`.
    let further = facts.nr_cores.clamp(1, MAX_CORES) as u64 - 1;
    header.data_end + further * header.shared.stack_stride
}

fn map_kernel(
    builder: &mut TableBuilder<'_>,
    header: &KernelHeader,
    facts: &BootFacts,
) -> Result<(), TableError> {
    let user = if facts.mode == Mode::Ring3 { pte::U } else { 0 };
    let phys = |va: u64| va - KERNEL_VIRT + KERNEL_IMAGE;
    for page in (KERNEL_VIRT..header.text_end).step_by(4096) {
        // The ring-0 stubs stay supervisor-only (SMEP); the page that ring 3
        // enters in ring-0 mode on a nested host is the only user page there.
        let bits = match page {
            _ if page == header.ring0_text => 0,
            _ if page == header.user_text => pte::U,
            _ => user,
        };
        builder.map(page, phys(page), PAGE_SIZE, bits, PAGE_SIZE)?;
    }
    let (text, ro, data) = (header.text_end, header.rodata_end, data_end(header, facts));
    builder.map(text, phys(text), ro - text, user | pte::NX, PAGE_SIZE)?;
    builder.map(ro, phys(ro), data - ro, user | pte::W | pte::NX, PAGE_SIZE)?;

    let rw = user | pte::W | pte::NX;
    let direct = |pa: u64| DIRECT_MAP + pa;
    // Low memory in small pages, so that descriptor tables and kernel text are
    // read-only through the direct map, too.
    let fine_end = align_up(phys(header.rodata_end), LARGE_PAGE_SIZE).unwrap_or(u64::MAX);
    for page in (0..fine_end).step_by(4096) {
        let fixed = (0..facts.nr_cores).any(|core| [gdt_tss(core), idt(core)].contains(&page));
        let image = (KERNEL_IMAGE..phys(header.rodata_end)).contains(&page);
        let bits = if fixed || image { rw & !pte::W } else { rw };
        builder.map(direct(page), page, PAGE_SIZE, bits, PAGE_SIZE)?;
    }
    let large = if facts.features.has(cpu::PAGE_1G) {
        GIB
    } else {
        LARGE_PAGE_SIZE
    };
    for &(start, len) in &facts.extents {
        let from = start.max(fine_end.min(start + len));
        builder.map(direct(from), from, start + len - from, rw, large)?;
    }
    builder.map(
        direct(DOORBELL_PAGE),
        DOORBELL_PAGE,
        PAGE_SIZE,
        rw,
        PAGE_SIZE,
    )?;
    builder.map(direct(LEASE_PAGE), LEASE_PAGE, PAGE_SIZE, rw, PAGE_SIZE)?;
    builder.map(
        direct(APIC_PAGE),
        APIC_PAGE,
        PAGE_SIZE,
        rw | pte::PCD,
        PAGE_SIZE,
    )
}

fn write_queue(ram: &Ram) -> Result<(), vm_memory::GuestMemoryError> {
    let base = enclave_abi::layout::QUEUE;
    let version_at = std::mem::offset_of!(QueuePage, abi_version) as u64;
    ram.write_obj(QUEUE_MAGIC, GuestAddress(base))?;
    ram.write_obj(ABI_VERSION, GuestAddress(base + version_at))
}

fn boot_info(facts: &BootFacts, page_table: u64, free_start: u64) -> BootInfo {
    let mut extents = [Extent::default(); MAX_EXTENTS];
    for (entry, &(start, len_bytes)) in extents.iter_mut().zip(&facts.extents) {
        *entry = Extent { start, len_bytes };
    }
    let mut name = [0; 64];
    for (to, from) in name.iter_mut().zip(facts.name.bytes().take(63)) {
        *to = from;
    }
    let (tsc_base, unix_ns, monotonic_ns) = facts.clock;
    BootInfo {
        magic: BOOT_MAGIC,
        abi_version: ABI_VERSION,
        mode: facts.mode as u32,
        flags: facts.flags,
        free_start,
        page_table,
        extents,
        tsc_base,
        unix_ns,
        monotonic_ns,
        tsc_khz: facts.tsc_khz,
        xcr0: facts.xcr0,
        hwcap: facts.hwcap,
        hwcap2: if facts.features.has(cpu::FSGSBASE) {
            2
        } else {
            0
        },
        random: facts.random,
        selftest: facts.selftest,
        nr_cpus: u32::try_from(facts.nr_cores).unwrap_or(1),
        nr_online: u32::try_from(facts.nr_online).unwrap_or(1),
        pad: 0,
        name,
        cpu_features: facts.features.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Backing;
    use crate::memory::PrivateRam;
    use zerocopy::FromZeros;

    fn header() -> KernelHeader {
        let mut header = KernelHeader::new_zeroed();
        (header.magic, header.abi_version) = (KERNEL_MAGIC, ABI_VERSION);
        header.header_bytes = u32::try_from(size_of::<KernelHeader>()).unwrap();
        header.text_end = KERNEL_VIRT + 0x4000;
        header.rodata_end = KERNEL_VIRT + 0x5000;
        header.data_end = KERNEL_VIRT + 0x8000;
        for entry in [
            &mut header.entry,
            &mut header.lstar_ring0,
            &mut header.lstar_ring0_nested,
            &mut header.lstar_ring3,
            &mut header.lstar_ring3_hardware,
            &mut header.shared.entry,
            &mut header.shared.lstar_ring0,
            &mut header.shared.lstar_ring3,
            &mut header.shared.lstar_ring3_hardware,
        ] {
            *entry = KERNEL_VIRT + 0x1000;
        }
        (header.shared.lstar_stride, header.shared.stack_stride) = (32, 0x2_0000);
        header
    }

    #[test]
    fn a_sound_header_is_accepted() {
        assert_eq!(check_header(&header()), Ok(()));
    }

    #[test]
    fn spoiled_headers_are_refused_with_a_reason() {
        let cases: [fn(&mut KernelHeader); 9] = [
            |h| h.magic = 0,
            |h| h.header_bytes -= 8,
            |h| h.abi_version += 1,
            |h| h.text_end += 1,
            |h| h.data_end = KERNEL_VIRT,
            |h| h.lstar_ring3 = 0x40_0000,
            |h| h.shared.lstar_ring0 = KERNEL_VIRT + 0x3fff,
            |h| h.shared.lstar_stride = u64::MAX,
            |h| h.shared.stack_stride = 1,
        ];
        for spoil in cases {
            let mut h = header();
            spoil(&mut h);
            assert!(check_header(&h).is_err());
        }
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused_by_name() {
        let ram = PrivateRam::new(32 << 20, Backing::Small, false)
            .unwrap()
            .ram;
        let error = load_image(&ram, Path::new("/proc/version")).unwrap_err();
        assert!(error.to_string().contains("/proc/version"), "{error}");
    }
}
