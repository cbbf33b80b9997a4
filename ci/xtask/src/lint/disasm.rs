//! Refuses machine code that an interpreted ring 0 cannot run.
//!
//! Some hosts interpret the guest's ring 0 one instruction at a time and lack
//! part of the instruction set; what fails there is listed in
//! `docs/platforms.md`. The compiler emits none of it for the kernel's target,
//! so a finding here means new inline assembly or changed flags. Pure: reads
//! what objdump prints.

use super::Finding;

/// Code whose symbol starts or ends like this runs in ring 3 wherever ring 0 is
/// interpreted; the seam for privileged operations (`int3`) is part of it.
const RING3_PREFIX: &str = "arch_ring3_";
const RING3_SUFFIX: &str = "_ring3";
/// Code that is only executed where SMAP is on, which no interpreted ring 0 has.
const SMAP_PREFIX: &str = "arch_smap_";
/// Code that leaves its work to the host where ring 0 is interpreted.
const EXTENDED_PREFIX: &str = "arch_extended_";

/// Data among the code: the header the VMM reads.
const HEADER: &str = "__header_start";

/// Instructions the interpreter refuses or runs as something else. `tzcnt` is
/// not among them: it is encoded as `rep bsf`, and the two differ for zero only,
/// which the compiler tests for first.
const REFUSED: &[&str] = &[
    "popcnt",
    "lzcnt",
    "cmpxchg16b",
    "stac",
    "clac",
    "rdtscp",
    "xgetbv",
    "vmcall",
    "vmmcall",
    "andn",
    "bextr",
    "blsi",
    "blsmsk",
    "blsr",
    "bzhi",
    "mulx",
    "pdep",
    "pext",
    "rorx",
    "sarx",
    "shlx",
    "shrx",
    "emms",
    "xsave64",
    "xrstor64",
    "int3",
];
/// Registers of the vector and x87 units.
const VECTOR_REGISTERS: &[&str] = &["%xmm", "%ymm", "%zmm", "%mm", "%st"];
/// Words objdump prints before the mnemonic.
const PREFIXES: &[&str] = &[
    "lock", "rep", "repz", "repnz", "data16", "addr32", "cs", "ds", "es", "fs", "gs", "ss",
    "notrack", "bnd",
];

/// One instruction of a listing.
#[derive(Clone, Copy, Debug)]
struct Instruction<'a> {
    line: usize,
    mnemonic: &'a str,
    operands: &'a str,
}

/// Number of instructions in an objdump listing, and the refused ones.
pub(crate) fn check(listing: &str) -> (usize, Vec<Finding>) {
    let mut count = 0;
    let mut findings = Vec::new();
    let mut symbol = "";
    let mut body = Vec::new();
    for (number, line) in (1..).zip(listing.lines()) {
        if let Some(name) = symbol_of(line) {
            findings.extend(check_symbol(symbol, &body));
            body.clear();
            symbol = name;
        } else if let Some(instruction) = instruction_of(number, line) {
            count += 1;
            body.push(instruction);
        }
    }
    findings.extend(check_symbol(symbol, &body));
    (count, findings)
}

/// The name in a line such as `ffffffff80200000 <name>:`.
fn symbol_of(line: &str) -> Option<&str> {
    let (address, rest) = line.split_once(" <")?;
    let is_address = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit());
    is_address.then(|| rest.strip_suffix(">:")).flatten()
}

fn instruction_of(line: usize, text: &str) -> Option<Instruction<'_>> {
    let (address, rest) = text.trim_start().split_once(":\t")?;
    if !address.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut rest = rest.trim();
    loop {
        let (word, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        if tail.is_empty() || !(PREFIXES.contains(&word) || word.starts_with("rex")) {
            return Some(Instruction {
                line,
                mnemonic: word,
                operands: tail.trim(),
            });
        }
        rest = tail.trim_start();
    }
}

fn check_symbol(symbol: &str, body: &[Instruction<'_>]) -> Vec<Finding> {
    let elsewhere = symbol.starts_with(RING3_PREFIX)
        || symbol.ends_with(RING3_SUFFIX)
        || symbol.starts_with(SMAP_PREFIX)
        || symbol.starts_with(EXTENDED_PREFIX);
    if elsewhere || symbol == HEADER {
        return Vec::new();
    }
    // The linker fills the gap after a function with breakpoints.
    let code_end = body
        .iter()
        .rposition(|i| i.mnemonic != "int3" && !i.mnemonic.starts_with("nop"))
        .map_or(0, |last| last + 1);
    body.iter()
        .take(code_end)
        .filter(|instruction| is_refused(instruction))
        .map(|instruction| {
            let text = format!(
                "`{} {}` cannot run in an interpreted ring 0 (line {} of the listing)",
                instruction.mnemonic, instruction.operands, instruction.line
            );
            Finding::new(symbol, 0, text)
        })
        .collect()
}

fn is_refused(instruction: &Instruction<'_>) -> bool {
    let name = instruction.mnemonic;
    // All AVX mnemonics start with v; verr and verw are plain x86.
    let is_avx = name.starts_with('v') && !matches!(name, "verr" | "verw");
    is_avx
        || REFUSED
            .iter()
            .any(|refused| name == *refused || name.trim_end_matches(['l', 'q', 'w']) == *refused)
        || VECTOR_REGISTERS
            .iter()
            .any(|register| instruction.operands.contains(register))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(symbol: &str, body: &[&str]) -> String {
        let mut text = format!("\nDisassembly of section .text:\n\nffffffff80200000 <{symbol}>:\n");
        for (index, instruction) in body.iter().enumerate() {
            text.push_str(&format!("ffffffff8020{index:04x}:\t{instruction}\n"));
        }
        text
    }

    fn refused(symbol: &str, body: &[&str]) -> usize {
        check(&listing(symbol, body)).1.len()
    }

    #[test]
    fn plain_code_passes_and_is_counted() {
        let body = [
            "mov    %rax,%rbx",
            "rep stos %al,%es:(%rdi)",
            "tzcnt  %rax,%rcx",
            "ret",
        ];
        let (count, findings) = check(&listing("start", &body));
        assert_eq!((count, findings.len()), (4, 0));
    }

    #[test]
    fn each_gap_of_the_interpreter_is_refused() {
        for instruction in [
            "popcnt %rax,%rax",
            "lzcnt  %rax,%rax",
            "lock cmpxchg16b (%rdi)",
            "vmovups (%rax),%ymm0",
            "movups %xmm0,(%rdi)",
            "rdtscp",
            "xgetbv",
            "stac",
            "vmcall",
            "shlx   %rax,%rbx,%rcx",
            "fldl   %st(1)",
            "xsave64 (%rdi)",
        ] {
            assert_eq!(refused("start", &[instruction, "ret"]), 1, "{instruction}");
        }
    }

    #[test]
    fn code_for_ring_3_may_use_them() {
        assert_eq!(
            refused("arch_ring3_copy", &["vmovups (%rax),%ymm0", "ret"]),
            0
        );
    }

    #[test]
    fn data_among_the_code_is_not_judged() {
        assert_eq!(
            refused("__header_start", &["vmovups (%rax),%ymm0", "ret"]),
            0
        );
    }

    #[test]
    fn breakpoints_belong_to_the_seam_or_to_padding() {
        assert_eq!(refused("start", &["int3", "ret"]), 1);
        assert_eq!(refused("reload_cr3_ring3", &["int3", "ret"]), 0);
        assert_eq!(refused("arch_smap_open", &["stac", "ret"]), 0);
        assert_eq!(
            refused("arch_extended_load", &["xrstor64 (%rdi)", "ret"]),
            0
        );
        assert_eq!(refused("start", &["ret", "int3", "int3"]), 0);
    }
}
