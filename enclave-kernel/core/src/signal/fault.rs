//! Which signal an exception is, and what its handler is told.

use super::number::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP};
use super::{Info, code};

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

/// An exception of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Its vector.
    pub vector: u64,
    /// The processor's error code.
    pub error: u64,
    /// The address of a page fault.
    pub address: u64,
    /// The instruction.
    pub rip: u64,
    /// Its flags.
    pub rflags: u64,
    /// Whether something is mapped at the address.
    pub is_mapped: bool,
    /// `si_code` of a floating-point exception, see [`float_code`].
    pub float_code: i32,
}

/// The signal of an exception vector, as Linux maps them.
#[must_use]
pub const fn of_vector(vector: u64) -> u8 {
    match vector {
        0 | 16 | 19 => SIGFPE,
        1 | 3 => SIGTRAP,
        6 => SIGILL,
        11 | 12 | 17 => SIGBUS,
        _ => SIGSEGV,
    }
}

impl Fault {
    /// What a handler is told.
    #[must_use]
    pub const fn info(&self) -> Info {
        let signal = of_vector(self.vector);
        match self.vector {
            0 => Info::at(signal, code::FPE_INTDIV, self.rip),
            1 if self.rflags & TRAP_FLAG != 0 => Info::at(signal, code::TRAP_TRACE, self.rip),
            1 => Info::at(signal, code::TRAP_BRKPT, self.rip),
            6 => Info::at(signal, code::ILL_ILLOPN, self.rip),
            14 if self.is_mapped => Info::at(signal, code::SEGV_ACCERR, self.address),
            14 => Info::at(signal, code::SEGV_MAPERR, self.address),
            16 | 19 => Info::at(signal, self.float_code, self.rip),
            17 => Info::at(signal, code::BUS_ADRALN, 0),
            _ => Info::at(signal, code::SI_KERNEL, 0),
        }
    }
}

/// `si_code` of a floating-point exception: `control` and `status` of the x87
/// (vector 16), or MXCSR (vector 19). 0 = none of those that are not masked.
#[must_use]
pub const fn float_code(vector: u64, control: u16, status: u16, mxcsr: u32) -> i32 {
    let raised = if vector == 16 {
        (status & !control) as u32
    } else {
        mxcsr & !(mxcsr >> 7)
    };
    if raised & 1 != 0 {
        code::FPE_FLTINV
    } else if raised & 4 != 0 {
        code::FPE_FLTDIV
    } else if raised & 8 != 0 {
        code::FPE_FLTOVF
    } else if raised & 0x12 != 0 {
        code::FPE_FLTUND
    } else if raised & 0x20 != 0 {
        code::FPE_FLTRES
    } else {
        0
    }
}
