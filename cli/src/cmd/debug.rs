//! `debug dump`: registers, last exits, queue and memslots of an enclave, for
//! whoever looks why it hangs or failed.
//!
//! The VMM tells ([`Dump`]); this prints. The guest is left for the look and
//! goes on; nothing of it is changed.

use std::time::Duration;

use clap::{Args, Subcommand};
use enclave_vmm::control::client::Client;
use enclave_vmm::failure::Failure;
use enclave_vmm::machine::MachineState;
use enclave_vmm::machine::dump::{Dump, LastExit, Place, VcpuDump};
use serde_json::{Map, Value, json};

use crate::locate;
use crate::output::{self, Format};

/// The VMM gives up on a guest that cannot be left after a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Registers on one line of the text.
const IN_A_ROW: usize = 4;

/// Look below what an enclave's kernel says.
#[derive(Debug, Subcommand)]
pub(crate) enum Debug {
    /// Print registers, last exits, queue and memory of a live or failed enclave.
    Dump(Name),
}

/// Which enclave.
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// The enclave.
    name: String,
}

impl Debug {
    pub(crate) fn run(&self, format: Format) -> Result<(), Failure> {
        let Self::Dump(Name { name }) = self;
        let dir = locate::enclave(&locate::run_dir()?, name)?;
        let mut client = Client::connect(&dir, ANSWER_TIMEOUT)?;
        let state = client.inspect()?.machine;
        let dump = client.dump()?;
        match format {
            Format::Json => output::json("dump", &document(name, &state, &dump)),
            Format::Text => output::bytes(text(name, &state, &dump).as_bytes()),
        }
    }
}

/// Registers and addresses as hexadecimal text: they need all 64 bits, which
/// many readers of JSON do not give a number.
fn document(name: &str, state: &MachineState, dump: &Dump) -> Value {
    let hex = |value: u64| json!(format!("{value:#x}"));
    let exit = |exit: &LastExit| json!({ "nr": exit.nr, "reason": exit.reason, "detail": hex(exit.detail) });
    let vcpu = |vcpu: &VcpuDump| {
        let registers = vcpu.registers.iter();
        let registers: Map<String, Value> = registers
            .map(|(name, value)| (name.clone(), hex(*value)))
            .collect();
        json!({
            "index": vcpu.index,
            "place": vcpu.place,
            "registers": registers,
            "last_exits": vcpu.last_exits.iter().map(exit).collect::<Vec<_>>(),
        })
    };
    let slots = dump.slots.iter().map(|slot| {
        json!({
            "slot": slot.slot,
            "gpa": hex(slot.gpa),
            "bytes": slot.bytes,
            "is_read_only": slot.is_read_only,
            "holds": slot.holds,
        })
    });
    json!({
        "enclave": name,
        "machine": state,
        "vcpus": dump.vcpus.iter().map(vcpu).collect::<Vec<_>>(),
        "queue": dump.queue,
        "slots": slots.collect::<Vec<_>>(),
    })
}

fn text(name: &str, state: &MachineState, dump: &Dump) -> String {
    let doing = match state {
        MachineState::Booting => "booting".to_owned(),
        MachineState::Idle => "idle".to_owned(),
        MachineState::Running { program } => format!("running {}", output::printable(program)),
        MachineState::Failed { reason } => format!("failed: {}", output::printable(reason)),
        MachineState::Frozen { .. } => "frozen".to_owned(),
        MachineState::Stopped => "stopped".to_owned(),
    };
    let mut text = format!("enclave {name}: {doing}\n");
    for vcpu in &dump.vcpus {
        text.push_str(&of_vcpu(vcpu));
    }
    let queue = &dump.queue;
    let ring = |[posted, taken]: [u32; 2]| format!("{posted} posted, {taken} taken");
    text.push_str(&format!(
        "\nqueue to host: {}; to guest: {}; command interrupts taken: {}\n\
         console: {} bytes written, {} taken, {} lost\n\n",
        ring(queue.to_host),
        ring(queue.to_guest),
        queue.interrupts_taken,
        queue.console[0],
        queue.console[1],
        queue.console_dropped,
    ));
    let rows: Vec<Vec<String>> = dump
        .slots
        .iter()
        .map(|slot| {
            let access = if slot.is_read_only { "r" } else { "rw" };
            vec![
                slot.slot.to_string(),
                format!("{:#x}", slot.gpa),
                output::size(slot.bytes),
                access.to_owned(),
                slot.holds.name().to_owned(),
            ]
        })
        .collect();
    text + &output::format_table(&["SLOT", "ADDRESS", "SIZE", "ACCESS", "USE"], &rows)
}

fn of_vcpu(vcpu: &VcpuDump) -> String {
    let place = match vcpu.place {
        Place::Guest => "in the guest",
        Place::Host => "outside the guest, its thread serves a call",
        Place::Ended => "stopped for good",
        Place::Stuck => "in the guest, which could not be left within a second",
    };
    let mut text = format!("\nvcpu {}: {place}\n", vcpu.index);
    for row in vcpu.registers.chunks(IN_A_ROW) {
        let cells = row
            .iter()
            .map(|(name, value)| format!("{name:>9} {value:016x}"));
        text.push_str(&cells.collect::<Vec<_>>().join(" "));
        text.push('\n');
    }
    text.push_str("last exits, oldest first:\n");
    for exit in &vcpu.last_exits {
        let line = format!("  {:>10} {} {:#x}\n", exit.nr, exit.reason, exit.detail);
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use enclave_vmm::machine::dump::{SlotDump, SlotUse};

    fn dump() -> Dump {
        Dump {
            vcpus: vec![VcpuDump {
                index: 0,
                place: Place::Ended,
                registers: vec![("rip".into(), u64::MAX), ("cr3".into(), 0x5000)],
                last_exits: vec![LastExit {
                    nr: 7,
                    reason: "shutdown".into(),
                    detail: 0,
                }],
            }],
            slots: vec![SlotDump {
                slot: 2,
                gpa: 0x1000,
                bytes: 4096,
                is_read_only: true,
                holds: SlotUse::Leases,
            }],
            ..Dump::default()
        }
    }

    #[test]
    fn text_names_state_registers_exits_and_memory() {
        let state = MachineState::Failed {
            reason: "triple\u{1b}fault".into(),
        };
        let text = text("a1", &state, &dump());
        for part in [
            "enclave a1: failed: triple?fault\n",
            "vcpu 0: stopped for good\n",
            "rip ffffffffffffffff",
            "  7 shutdown 0x0\n",
            "\n2     0x1000   4K    r       leases\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn json_keeps_all_bits_of_a_register() {
        let value = document("a1", &MachineState::Idle, &dump());
        let registers = &value["vcpus"][0]["registers"];
        assert_eq!(registers["rip"], "0xffffffffffffffff");
        assert_eq!(value["slots"][0]["holds"], "leases");
    }
}
