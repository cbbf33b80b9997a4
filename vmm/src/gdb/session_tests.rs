//! Sessions with a made-up target.

use super::*;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

/// Two cores, 64 bytes of memory at 0x1000, and what was done.
struct Fake {
    memory: [u8; 64],
    registers: [Registers; 2],
    breakpoints: BTreeSet<u64>,
    event: OwnedFd,
    stops: Vec<(usize, Stop)>,
    let_go: usize,
    resumed: Vec<Vec<Go>>,
}

impl Fake {
    fn new() -> Self {
        Self {
            memory: [7; 64],
            registers: [Registers::default(); 2],
            breakpoints: BTreeSet::new(),
            event: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            stops: Vec::new(),
            let_go: 0,
            resumed: Vec::new(),
        }
    }

    fn range(address: u64, len: usize) -> Result<std::ops::Range<usize>, TargetError> {
        let start = usize::try_from(address.wrapping_sub(0x1000)).unwrap();
        match start.checked_add(len) {
            Some(end) if end <= 64 => Ok(start..end),
            _ => Err(TargetError::NoMemory(address.max(0x1040))),
        }
    }
}

impl Target for Fake {
    fn cores(&self) -> usize {
        2
    }
    fn stop(&mut self) -> Result<usize, TargetError> {
        Ok(0)
    }
    fn resume(&mut self, each: &[Go]) -> Result<(), TargetError> {
        let stepper = each.iter().position(|go| *go == Go::Step);
        self.stops.push(match stepper {
            Some(core) => (core, Stop::Trap),
            None => (1, Stop::Breakpoint),
        });
        self.resumed.push(each.to_vec());
        rustix::io::write(&self.event, &1_u64.to_ne_bytes()).unwrap();
        Ok(())
    }
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
    fn take_stop(&mut self) -> Option<(usize, Stop)> {
        rustix::io::read(&self.event, &mut [0; 8]).unwrap();
        self.stops.pop()
    }
    fn registers(&mut self, core: usize) -> Result<Registers, TargetError> {
        Ok(self.registers[core])
    }
    fn set_registers(&mut self, core: usize, registers: &Registers) -> Result<(), TargetError> {
        self.registers[core] = *registers;
        Ok(())
    }
    fn read(&mut self, _: usize, address: u64, bytes: &mut [u8]) -> Result<(), TargetError> {
        let range = Self::range(address, bytes.len())?;
        bytes.copy_from_slice(&self.memory[range]);
        Ok(())
    }
    fn write(&mut self, _: usize, address: u64, bytes: &[u8]) -> Result<(), TargetError> {
        let range = Self::range(address, bytes.len())?;
        self.memory[range].copy_from_slice(bytes);
        Ok(())
    }
    fn insert(&mut self, _: usize, address: u64) -> Result<(), TargetError> {
        self.breakpoints.insert(address);
        Ok(())
    }
    fn remove(&mut self, _: usize, address: u64) -> Result<(), TargetError> {
        self.breakpoints.remove(&address);
        Ok(())
    }
    fn let_go(&mut self) {
        self.let_go += 1;
        self.breakpoints.clear();
    }
}

/// Has a session with `requests`, each sent when the one before was answered;
/// the answers, and the target afterwards.
fn session(requests: &[&str]) -> (Vec<String>, Fake) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut fake = Fake::new();
    let input = theirs.try_clone().unwrap();
    let answers = std::thread::scope(|scope| {
        let served = scope.spawn(|| super::super::serve(input.into(), theirs.into(), &mut fake));
        let mut reader = Reader::default();
        let mut answers = Vec::new();
        for request in requests {
            (&ours).write_all(&encode(request)).unwrap();
            loop {
                if let Some(Item::Packet(packet)) = reader.next_item() {
                    answers.push(String::from_utf8(packet).unwrap());
                    break;
                }
                let mut bytes = [0; 8192];
                let count = (&ours).read(&mut bytes).unwrap();
                if count == 0 {
                    break;
                }
                reader.push(&bytes[..count]);
            }
        }
        drop(ours);
        served.join().unwrap();
        answers
    });
    (answers, fake)
}

#[test]
fn memory_and_registers_go_both_ways() {
    let block = to_hex(&[1; super::super::registers::BYTES]);
    let set = format!("G{block}");
    let requests = ["m1000,4", "M1001,2:abcd", "m1000,4", "mffff,1", &set, "g"];
    let (answers, fake) = session(&requests);
    let expected = ["07070707", "OK", "07abcd07", "E0e", "OK", &block];
    assert_eq!(answers, expected);
    assert_eq!(fake.registers[0].rip, 0x0101_0101_0101_0101);
}

#[test]
fn going_on_ends_with_a_stop() {
    let (answers, fake) = session(&["Z0,1004,1", "vCont;c", "s", "?", "z0,1004,1", "D"]);
    let expected = [
        "OK",
        "T05thread:2;swbreak:;",
        "T05thread:2;",
        "T05thread:2;",
        "OK",
        "OK",
    ];
    assert_eq!(answers, expected);
    assert_eq!(fake.resumed, [[Go::On, Go::On], [Go::On, Go::Step]]);
    assert_eq!(fake.let_go, 1);
}

#[test]
fn cores_are_threads_of_their_own() {
    let block = to_hex(&[1; super::super::registers::BYTES]);
    let set = format!("G{block}");
    let zero = to_hex(&[0; super::super::registers::BYTES]);
    let requests = [
        "qfThreadInfo",
        "qC",
        "Hg2",
        &set,
        "g",
        "qC",
        "Hg1",
        "g",
        "T2",
        "T3",
        "Hg3",
        "Hx1",
        "vCont;s:1",
        "qThreadExtraInfo,2",
        "D",
    ];
    let (answers, fake) = session(&requests);
    let expected = [
        "m1,2",
        "QC1",
        "OK",
        "OK",
        &block,
        "QC2",
        "OK",
        &zero,
        "OK",
        "E01",
        "E01",
        "E01",
        "T05thread:1;",
        &to_hex(b"core 1 of the enclave"),
        "OK",
    ];
    assert_eq!(answers, expected);
    assert_eq!(fake.resumed, [[Go::Step, Go::Stay]]);
}

#[test]
fn a_debugger_that_is_gone_leaves_nothing() {
    let (_, fake) = session(&["Z0,1004,1"]);
    assert_eq!((fake.let_go, fake.breakpoints.len()), (1, 0));
}

#[test]
fn nonsense_is_refused_and_the_session_goes_on() {
    let requests = [
        "m",
        "m1",
        "mx,y",
        "M1000,4:ab",
        "G12",
        "Z9,0,1",
        "Z0",
        "c1000",
        "vCont;x",
        "\u{e4}",
        "qXfer:features:read:target.xml:z",
        "!",
        "m1000,ffffffffffffffff",
        "g",
    ];
    let (answers, _) = session(&requests);
    assert_eq!(answers.len(), requests.len());
    assert_eq!(answers[0], "E01");
    assert_eq!(
        answers.last().unwrap().len(),
        2 * super::super::registers::BYTES
    );
}

#[test]
fn the_description_comes_in_pieces() {
    let mut whole = String::new();
    loop {
        let request = format!("qXfer:features:read:target.xml:{:x},400", whole.len());
        let (answers, _) = session(&[&request]);
        let (more, part) = answers[0].split_at(1);
        whole.push_str(part);
        if more == "l" {
            break;
        }
    }
    assert_eq!(whole, description());
}
