//! The registers as gdb has them, and the description that it is given of them.
//!
//! Pure. Order and names are gdb's features `org.gnu.gdb.i386.core`, `.sse` and
//! `.segments` (GDB manual, appendix G.5).

/// Registers of a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    pub general: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// Flags.
    pub flags: u32,
    /// CS, SS, DS, ES, FS, GS.
    pub segments: [u32; 6],
    /// x87 stack.
    pub x87: [[u8; 10]; 8],
    /// Control, status, tag, instruction segment and offset, operand segment and
    /// offset, opcode of the x87.
    pub x87_control: [u32; 8],
    /// SSE registers.
    pub xmm: [[u8; 16]; 16],
    /// SSE control.
    pub mxcsr: u32,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
}

/// Bytes of all registers as they are sent.
pub const BYTES: usize = 16 * 8 + 8 + 4 + 6 * 4 + 8 * 10 + 8 * 4 + 16 * 16 + 4 + 2 * 8;

const GENERAL: [&str; 16] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const X87_CONTROL: [&str; 8] = [
    "fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop",
];

impl Registers {
    /// As one block, in the order of [`description`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend(self.general.iter().flat_map(|r| r.to_le_bytes()));
        out.extend(self.rip.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.segments.iter().flat_map(|r| r.to_le_bytes()));
        out.extend(self.x87.as_flattened());
        out.extend(self.x87_control.iter().flat_map(|r| r.to_le_bytes()));
        out.extend(self.xmm.as_flattened());
        out.extend(self.mxcsr.to_le_bytes());
        out.extend(self.bases.iter().flat_map(|r| r.to_le_bytes()));
        out
    }

    /// From such a block; `None` if it has another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != BYTES {
            return None;
        }
        let mut rest = bytes;
        let mut out = Self::default();
        for register in &mut out.general {
            *register = u64::from_le_bytes(take(&mut rest)?);
        }
        out.rip = u64::from_le_bytes(take(&mut rest)?);
        out.flags = u32::from_le_bytes(take(&mut rest)?);
        for register in &mut out.segments {
            *register = u32::from_le_bytes(take(&mut rest)?);
        }
        for register in &mut out.x87 {
            *register = take(&mut rest)?;
        }
        for register in &mut out.x87_control {
            *register = u32::from_le_bytes(take(&mut rest)?);
        }
        for register in &mut out.xmm {
            *register = take(&mut rest)?;
        }
        out.mxcsr = u32::from_le_bytes(take(&mut rest)?);
        for register in &mut out.bases {
            *register = u64::from_le_bytes(take(&mut rest)?);
        }
        Some(out)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*first)
}

/// What gdb is told: names, sizes, order.
#[must_use]
pub fn description() -> String {
    let mut text = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target version=\"1.0\"><architecture>i386:x86-64</architecture>\
         <feature name=\"org.gnu.gdb.i386.core\">",
    );
    let mut add = |name: &str, bits: u32, kind: &str| {
        text.push_str(&format!(
            "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>"
        ));
    };
    for name in GENERAL {
        let pointer = matches!(name, "rbp" | "rsp");
        add(name, 64, if pointer { "data_ptr" } else { "int64" });
    }
    add("rip", 64, "code_ptr");
    add("eflags", 32, "int32");
    for name in ["cs", "ss", "ds", "es", "fs", "gs"] {
        add(name, 32, "int32");
    }
    for nr in 0..8 {
        add(&format!("st{nr}"), 80, "i387_ext");
    }
    for name in X87_CONTROL {
        add(name, 32, "int32");
    }
    text.push_str("</feature><feature name=\"org.gnu.gdb.i386.sse\">");
    let mut add = |name: &str, bits: u32, kind: &str| {
        text.push_str(&format!(
            "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>"
        ));
    };
    for nr in 0..16 {
        add(&format!("xmm{nr}"), 128, "uint128");
    }
    add("mxcsr", 32, "int32");
    text.push_str(
        "</feature><feature name=\"org.gnu.gdb.i386.segments\">\
         <reg name=\"fs_base\" bitsize=\"64\" type=\"int64\"/>\
         <reg name=\"gs_base\" bitsize=\"64\" type=\"int64\"/></feature></target>",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_its_place() {
        let bytes: Vec<u8> = (0..BYTES)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect();
        let registers = Registers::from_bytes(&bytes).unwrap();
        assert_eq!(registers.to_bytes(), bytes);
        assert_eq!(registers.rip.to_le_bytes()[0], 128);
        assert_eq!(Registers::from_bytes(&bytes[1..]), None);
    }

    #[test]
    fn the_description_has_as_many_bits_as_are_sent() {
        let text = description();
        let bits = text.split("bitsize=\"").skip(1).map(|rest| {
            let (bits, _) = rest.split_once('"').unwrap();
            bits.parse::<usize>().unwrap()
        });
        assert_eq!(bits.sum::<usize>(), 8 * BYTES);
    }
}
