//! Counts the guest's instructions in what Bochs' debugger wrote.
//!
//! Between the two marks of a pair the debugger writes every instruction that
//! the processor executes, those of the guest and, after an exit, those of the
//! host:
//!
//! ```text
//! Tracing enabled for CPU0
//! (0).[245] [0x000023e98f9f] 0033:000000000023ef9f (unk. ctxt): syscall        ; 0f05
//! …
//! (0).[301] [0x00003fb443ae] 0010:ffffffffc03513ae (unk. ctxt): push rax       ; 50
//! …
//! (0).[410] [0x00003fb4439e] 0010:ffffffffc035139e (unk. ctxt): vmresume       ; 0f01c3
//! (0).[411] [0x0000242109ce] 0010:ffffffff802109ce (unk. ctxt): xor eax, eax   ; 31c0
//! …
//! Tracing disabled for CPU0
//! ```
//!
//! Nothing says whose an instruction is. But the host's part ends with VMRESUME
//! (or VMLAUNCH), and Linux leaves a guest to a place right behind that
//! instruction (`vmx_vmexit` in `vmenter.S`), where no guest of this lane has
//! code. A repeated string instruction is one instruction, and so is one that
//! an exit interrupted and that was started again.

use std::io::BufRead;

/// `vmx_vmexit` is this near behind VMRESUME and VMLAUNCH.
const EXIT_WINDOW: u64 = 64;

/// An instruction as it was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    rip: u64,
    enters: bool,
    marks: bool,
}

/// What one pair of marks enclosed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// The guest's instructions, the marks not included.
    pub(super) instructions: u64,
    /// Exits to the host after which the guest went on with its next
    /// instruction: doorbells, but no timer tick in the middle of a copy.
    pub(super) exits: u64,
}

/// The samples of a whole trace in their order.
///
/// # Errors
/// When it cannot be read.
pub(super) fn samples(trace: impl BufRead) -> std::io::Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let mut steps: Option<Vec<Step>> = None;
    for line in trace.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("Tracing enabled") {
            steps = Some(Vec::new());
        } else if line.starts_with("Tracing disabled") {
            samples.extend(steps.take().map(|steps| count(&steps)));
        } else if let Some(steps) = &mut steps {
            steps.extend(step(&line));
        }
    }
    Ok(samples)
}

/// Reads one line; `None` for one that is no instruction.
fn step(line: &str) -> Option<Step> {
    let (_, rest) = line.strip_prefix("(0).[")?.split_once("] [")?;
    let (_, rest) = rest.split_once("] ")?;
    let (_, rest) = rest.split_once(':')?;
    let (rip, rest) = rest.split_once(' ')?;
    let (_, text) = rest.split_once("): ")?;
    Some(Step {
        rip: u64::from_str_radix(rip, 16).ok()?,
        enters: text.starts_with("vmresume ") || text.starts_with("vmlaunch "),
        marks: text.starts_with("xchg bx, bx "),
    })
}

fn count(steps: &[Step]) -> Sample {
    let mut entries: Vec<u64> = steps.iter().filter(|s| s.enters).map(|s| s.rip).collect();
    entries.sort_unstable();
    entries.dedup();
    let leaves = |rip: u64| {
        let behind = |entry: &u64| rip > *entry && rip - *entry < EXIT_WINDOW;
        entries.iter().any(behind)
    };
    let mut sample = Sample {
        instructions: 0,
        exits: 0,
    };
    let (mut in_guest, mut was_out, mut last) = (true, false, None);
    for step in steps {
        if in_guest && leaves(step.rip) {
            in_guest = false;
            was_out = true;
        }
        if !in_guest {
            in_guest = step.enters;
            continue;
        }
        let goes_on = last == Some(step.rip);
        if was_out && !goes_on {
            sample.exits += 1;
        }
        if !step.marks && !goes_on {
            sample.instructions += 1;
        }
        was_out = false;
        last = Some(step.rip);
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    const KVM: u64 = 0xffff_ffff_c035_1380;

    fn trace(instructions: &[(u64, &str)]) -> String {
        let mut text = "noise\nTracing enabled for CPU0\n".to_owned();
        for (n, (rip, name)) in instructions.iter().enumerate() {
            text += &format!("(0).[{n}] [0x00001] 0010:{rip:016x} (unk. ctxt): {name}    ; 90\n");
        }
        text + "(0) Magic breakpoint\nTracing disabled for CPU0\nnoise\n"
    }

    fn only(text: &str) -> Sample {
        let all = samples(text.as_bytes()).unwrap();
        assert_eq!(all.len(), 1);
        all[0]
    }

    #[test]
    fn everything_but_the_mark_counts() {
        let text = trace(&[(1, "syscall"), (0x10, "push rax"), (2, "xchg bx, bx")]);
        let wanted = Sample {
            instructions: 2,
            exits: 0,
        };
        assert_eq!(only(&text), wanted);
    }

    #[test]
    fn the_host_is_taken_off_from_exit_to_entry() {
        let text = trace(&[
            (1, "mov qword ptr ds:[rax], 0x1"),
            (KVM + 0x2e, "push rax"),
            (KVM - 0x1000, "ret"),
            (0x7f00, "push rax"),
            (KVM + 0x1e, "vmresume"),
            (2, "ret"),
            (KVM + 0x2e, "push rax"),
            (KVM + 0x23, "vmlaunch"),
            (3, "xchg bx, bx"),
        ]);
        let wanted = Sample {
            instructions: 2,
            exits: 2,
        };
        assert_eq!(only(&text), wanted);
    }

    #[test]
    fn a_repeated_instruction_is_one_even_when_an_exit_divides_it() {
        let text = trace(&[
            (1, "rep movsq qword ptr es:[rdi], qword ptr ds:[rsi]"),
            (1, "rep movsq qword ptr es:[rdi], qword ptr ds:[rsi]"),
            (KVM + 0x2e, "push rax"),
            (KVM + 0x1e, "vmresume"),
            (1, "rep movsq qword ptr es:[rdi], qword ptr ds:[rsi]"),
            (2, "xchg bx, bx"),
        ]);
        let wanted = Sample {
            instructions: 1,
            exits: 0,
        };
        assert_eq!(only(&text), wanted);
    }

    #[test]
    fn other_lines_are_no_instructions() {
        for line in [
            "",
            "(0) Magic breakpoint",
            "Next at t=7",
            "(0).[1] [x",
            "(0).[1] [0x1] 10:zz (c): nop ;",
        ] {
            assert_eq!(step(line), None, "{line}");
        }
        assert_eq!(
            samples("(0).[1] [0x1] 0010:01 (c): nop ; 90\n".as_bytes()).unwrap(),
            []
        );
    }
}
