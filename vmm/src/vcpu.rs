//! A vCPU before it runs: feature set, registers, MSRs, local APIC.
//!
//! Called by [`crate::machine`] and [`crate::probe`]. Everything the kernel
//! would need privileged instructions for is set here from its image header;
//! which registers depend on the privilege mode is decided in this file only.

use enclave_abi::boot::{BOOT_SYSCALL_STAYS_IN_RING3, Mode, cpu};
use enclave_abi::layout::{
    BOOT_INFO, DIRECT_MAP, PRIORITY_NO_BELLS, SEL_KERNEL_CS, SEL_KERNEL_SS, SEL_TSS, SEL_USER_CS,
    SEL_USER_SS, gdt_tss, idt,
};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::features::Features;
use crate::loader::LoadedKernel;
use crate::tables::{GDT_LIMIT, TSS_BYTES, TSS_OFFSET};

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// A KVM call failed.
    #[error("KVM refused {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM wrote fewer MSRs than asked.
    #[error("KVM refused MSR {0:#x}")]
    Msr(u32),
    /// The CPU lacks something the kernel cannot do without.
    #[error("this CPU has no {0}")]
    Missing(&'static str),
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Kvm(what, error)
}

/// Features that are a bit of CR4.
const CR4_FEATURES: [(u64, u64); 5] = [
    (cpu::SMEP, CR4_SMEP),
    (cpu::SMAP, CR4_SMAP),
    (cpu::UMIP, CR4_UMIP),
    (cpu::PCID, CR4_PCIDE),
    (cpu::FSGSBASE, CR4_FSGSBASE),
];

/// What KVM offers a guest on this host.
#[derive(Clone, Debug)]
pub struct CpuFacts {
    /// CPUID leaves to give to the vCPU.
    pub cpuid: CpuId,
    /// XCR0: x87, SSE, AVX and AVX-512 state where supported (SDM vol. 1 §13.3).
    pub xcr0: u64,
    /// Leaf 1 EDX.
    pub hwcap: u64,
    /// What CPUID names.
    pub named: Features,
}

/// x87 | SSE | AVX | AVX-512 (opmask, ZMM_Hi256, Hi16_ZMM).
const XCR0_WANTED: u64 = 0b1110_0111;

impl CpuFacts {
    /// Asks KVM.
    ///
    /// # Errors
    /// [`VcpuError`] when KVM does not answer or names no basic leaf.
    pub fn read(kvm_fd: &Kvm) -> Result<Self, VcpuError> {
        let cpuid = kvm_fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("KVM_GET_SUPPORTED_CPUID"))?;
        let leaf = |function: u32, index: u32| {
            cpuid
                .as_slice()
                .iter()
                .find(|e| e.function == function && e.index == index)
                .copied()
        };
        let one = leaf(1, 0).ok_or(VcpuError::Missing("CPUID leaf 1"))?;
        let xcr0 = leaf(0xd, 0).map_or(3, |e| u64::from(e.eax) | u64::from(e.edx) << 32);
        Ok(Self {
            xcr0: xcr0 & XCR0_WANTED | 3,
            hwcap: u64::from(one.edx),
            named: Features::of_cpuid(&cpuid),
            cpuid,
        })
    }
}

fn segment(selector: u16, kind: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: u8::try_from(selector & 3).unwrap_or(0),
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Code and stack segment of a program.
#[must_use]
pub fn user_segments() -> (kvm_segment, kvm_segment) {
    (
        segment(SEL_USER_CS, 11, true),
        segment(SEL_USER_SS, 3, false),
    )
}

const CR0: u64 = 0x8005_0033 & !(1 << 18) | 1 << 16; // PE MP ET NE WP PG
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
const CR4_UMIP: u64 = 1 << 11;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_PCIDE: u64 = 1 << 17;
const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
const CR4_ALWAYS: u64 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
const EFER_NXE: u64 = 1 << 11;
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | EFER_NXE; // SCE LME LMA NXE
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;
const APIC_X2: u64 = 1 << 10;

/// Sets control registers and segments for 64-bit mode at privilege `ring`.
fn sregs(base: kvm_sregs, page_table: u64, ring: u16, cr4: u64, x2apic: bool) -> kvm_sregs {
    let (cs, ss) = if ring == 3 {
        (SEL_USER_CS, SEL_USER_SS)
    } else {
        (SEL_KERNEL_CS, SEL_KERNEL_SS)
    };
    let data = segment(ss, 3, false);
    let mut s = base;
    s.cs = segment(cs, 11, true);
    (s.ss, s.ds, s.es, s.fs, s.gs) = (data, data, data, data, data);
    s.cr0 = CR0;
    s.cr3 = page_table;
    s.cr4 = cr4;
    s.efer = EFER;
    s.apic_base = APIC_BASE | if x2apic { APIC_X2 } else { 0 };
    s
}

/// Gives a fresh vCPU its features: CPUID, CR4 bits, XCR0. Returns the CR4 that
/// later states must keep. Once per vCPU, before it first runs: KVM refuses a
/// change of CPUID afterwards.
///
/// # Errors
/// [`VcpuError`] names what KVM refused.
pub fn give_features(vcpu: &VcpuFd, core: usize, facts: &CpuFacts) -> Result<u64, VcpuError> {
    vcpu.set_cpuid2(&cpuid_of(facts, core))
        .map_err(kvm("KVM_SET_CPUID2"))?;
    let cr4 = choose_cr4(vcpu)?;
    set_xcr0(vcpu, facts.xcr0, cr4)?;
    Ok(cr4)
}

/// Puts the vCPU into long mode at ring 0 with the tables at `page_table`,
/// about to execute `rip`. Used by the probe.
///
/// # Errors
/// [`VcpuError`] names what KVM refused.
pub fn set_up_probe(vcpu: &VcpuFd, cr4: u64, page_table: u64, rip: u64) -> Result<(), VcpuError> {
    let base = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&sregs(base, page_table, 0, cr4, false))
        .map_err(kvm("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))
}

/// The features whose bits are set in `cr4`.
#[must_use]
pub fn features_of_cr4(cr4: u64) -> Features {
    let set = CR4_FEATURES.iter().filter(|(_, bit)| cr4 & bit != 0);
    Features(set.fold(0, |bits, (feature, _)| bits | feature))
}

/// The features that the vCPU's registers show to be on, and 1 GiB pages as
/// chosen: what `inspect` tells.
///
/// # Errors
/// [`VcpuError`] when KVM does not give the registers.
pub fn features_in_force(vcpu: &VcpuFd, chosen: Features) -> Result<Features, VcpuError> {
    let s = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    let mut bits = features_of_cr4(s.cr4).0 | chosen.0 & cpu::PAGE_1G;
    for (feature, on) in [
        (cpu::NX, s.efer & EFER_NXE != 0),
        (cpu::X2APIC, s.apic_base & APIC_X2 != 0),
    ] {
        bits |= if on { feature } else { 0 };
    }
    Ok(Features(bits))
}

/// Which core of how many a vCPU is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number, that of its interrupt controller, too.
    pub core: usize,
    /// Cores of the enclave.
    pub nr_cores: usize,
}

/// Gives the vCPU everything the kernel expects at its first instruction.
///
/// # Errors
/// [`VcpuError`] names what KVM refused.
pub fn set_up(
    vcpu: &VcpuFd,
    place: Place,
    kernel: &LoadedKernel,
    mode: Mode,
    flags: u64,
    features: Features,
) -> Result<(), VcpuError> {
    if !features.has(cpu::FSGSBASE) {
        return Err(VcpuError::Missing("FSGSBASE instructions"));
    }
    let ring = if mode == Mode::Ring3 { 3 } else { 0 };
    let base = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
    let wanted = CR4_FEATURES.iter().filter(|(f, _)| features.has(*f));
    let cr4 = wanted.fold(CR4_ALWAYS | base.cr4 & CR4_OSXSAVE, |cr4, (_, bit)| {
        cr4 | bit
    });
    let mut s = sregs(
        base,
        kernel.page_table,
        ring,
        cr4,
        features.has(cpu::X2APIC),
    );
    s.gdt.base = DIRECT_MAP + gdt_tss(place.core);
    s.gdt.limit = GDT_LIMIT;
    s.idt.base = DIRECT_MAP + idt(place.core);
    s.idt.limit = u16::try_from(enclave_abi::boot::NR_GATES * 16 - 1).unwrap_or(u16::MAX);
    s.tr = kvm_segment {
        base: DIRECT_MAP + gdt_tss(place.core) + TSS_OFFSET,
        limit: u32::try_from(TSS_BYTES - 1).unwrap_or(103),
        selector: SEL_TSS,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    vcpu.set_sregs(&s).map_err(kvm("KVM_SET_SREGS"))?;
    set_msrs(vcpu, place, kernel, mode, flags)?;
    enable_apic(vcpu)?;
    let rflags = if mode == Mode::Ring3 { 0x202 } else { 2 };
    let stacks = place.core as u64 * kernel.header.shared.stack_stride;
    let (rip, rdi) = match place.core {
        0 => (kernel.header.entry, DIRECT_MAP + BOOT_INFO),
        _ => (kernel.header.shared.entry, 0),
    };
    let regs = kvm_regs {
        rip,
        rsp: kernel.header.boot_stack + stacks,
        rdi,
        rflags,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
    if place.core == 0 {
        return Ok(());
    }
    // Nobody starts it as a processor is started: its state is set already.
    let runnable = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(runnable).map_err(kvm("KVM_SET_MP_STATE"))
}

/// CPUID as core `core` sees it: its own number in the leaves that tell it.
fn cpuid_of(facts: &CpuFacts, core: usize) -> CpuId {
    let number = u32::try_from(core).unwrap_or(0);
    let mut cpuid = facts.cpuid.clone();
    for leaf in cpuid.as_mut_slice() {
        match leaf.function {
            1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | number << 24,
            0xb | 0x1f => leaf.edx = number,
            _ => {}
        }
    }
    cpuid
}

/// The control-register-4 bits that KVM lets a guest have: tried one by one,
/// because a nested KVM accepts some that its CPUID does not name and the other
/// way round.
fn choose_cr4(vcpu: &VcpuFd) -> Result<u64, VcpuError> {
    let mut cr4 = CR4_ALWAYS;
    for bit in [CR4_OSXSAVE, CR4_FSGSBASE, CR4_SMEP, CR4_UMIP] {
        let base = vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?;
        if vcpu.set_sregs(&sregs(base, 0, 0, cr4 | bit, false)).is_ok() {
            cr4 |= bit;
        }
    }
    Ok(cr4)
}

/// Sets XCR0 before the first run (QEMU's SVM does not intercept XSETBV, so the
/// guest must never have to execute it). Without OSXSAVE a nested host keeps
/// its own XCR0 in force, and there is nothing to set.
fn set_xcr0(vcpu: &VcpuFd, xcr0: u64, cr4: u64) -> Result<(), VcpuError> {
    if cr4 & CR4_OSXSAVE == 0 {
        return Ok(());
    }
    let mut xcrs = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    xcrs.xcrs[0] = kvm_xcr {
        xcr: 0,
        value: xcr0,
        ..Default::default()
    };
    vcpu.set_xcrs(&xcrs).map_err(kvm("KVM_SET_XCRS"))
}

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SFMASK: u32 = 0xc000_0084;
/// AC, NT, DF, TF: what a kernel never wants set on entry.
const SFMASK_ALWAYS: u64 = 1 << 18 | 1 << 14 | 1 << 10 | 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;

fn set_msrs(
    vcpu: &VcpuFd,
    place: Place,
    kernel: &LoadedKernel,
    mode: Mode,
    flags: u64,
) -> Result<(), VcpuError> {
    let (header, shared) = (&kernel.header, &kernel.header.shared);
    let nested = flags & BOOT_SYSCALL_STAYS_IN_RING3 != 0;
    let (lstar, mask) = match mode {
        // Ring 3 could never set IF again.
        Mode::Ring3 if nested => (header.lstar_ring3, SFMASK_ALWAYS),
        Mode::Ring3 => (header.lstar_ring3_hardware, SFMASK_ALWAYS | RFLAGS_IF),
        Mode::Ring0 if nested => (header.lstar_ring0_nested, SFMASK_ALWAYS),
        Mode::Ring0 => (header.lstar_ring0, SFMASK_ALWAYS | RFLAGS_IF),
    };
    let of_core = |first: u64| first + place.core as u64 * shared.lstar_stride;
    let lstar = match (place.nr_cores, mode) {
        (0 | 1, _) => lstar,
        (_, Mode::Ring3) if nested => of_core(shared.lstar_ring3),
        (_, Mode::Ring3) => of_core(shared.lstar_ring3_hardware),
        // Leads to a gate, and that is the core's own.
        (_, Mode::Ring0) if nested => lstar,
        (_, Mode::Ring0) => of_core(shared.lstar_ring0),
    };
    let star = u64::from(SEL_KERNEL_CS) << 32 | 0x20 << 48;
    // CSTAR stays 0: on the nested KVM a 32-bit SYSCALL enters ring 0 at its
    // low half, and nothing is ever mapped there.
    for (index, data) in [
        (MSR_STAR, star),
        (MSR_LSTAR, lstar),
        (MSR_CSTAR, 0),
        (MSR_SFMASK, mask),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).map_err(|_| VcpuError::Msr(index))?;
        let written = vcpu.set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
        if written != 1 {
            return Err(VcpuError::Msr(index));
        }
    }
    Ok(())
}

/// Spurious-interrupt register: APIC software-enabled, vector 0xff
/// (SDM vol. 3 §12.9). Task priority: bells stay out.
fn enable_apic(vcpu: &VcpuFd) -> Result<(), VcpuError> {
    const TPR: usize = 0x80;
    const SVR: usize = 0xf0;
    let mut lapic = vcpu.get_lapic().map_err(kvm("KVM_GET_LAPIC"))?;
    for (register, value) in [(TPR, PRIORITY_NO_BELLS), (SVR, 0x1ff)] {
        for (byte, new) in lapic
            .regs
            .iter_mut()
            .skip(register)
            .zip(value.to_le_bytes())
        {
            *byte = i8::from_le_bytes([new]);
        }
    }
    vcpu.set_lapic(&lapic).map_err(kvm("KVM_SET_LAPIC"))
}

/// The guest's time-stamp counter now.
///
/// # Errors
/// [`VcpuError`] when KVM does not give it.
pub fn guest_tsc(vcpu: &VcpuFd) -> Result<u64, VcpuError> {
    const MSR_TSC: u32 = 0x10;
    let entry = kvm_msr_entry {
        index: MSR_TSC,
        ..Default::default()
    };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| VcpuError::Msr(MSR_TSC))?;
    vcpu.get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
    msrs.as_slice()
        .first()
        .map(|e| e.data)
        .ok_or(VcpuError::Msr(MSR_TSC))
}
