//! One encode and one decode test per message, and bytes that are no message.
//!
//! The encode tests pin sizes and places of fields; the decode tests go there
//! and back. Both lists are checked to hold every kind.

use super::socket::{receive, send};
use super::*;
use enclave_abi::arena::{GenerationRecord, NAME_BYTES, name_field};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd, OwnedFd};

fn name() -> [u8; NAME_BYTES] {
    name_field("flux").expect("a valid name")
}

/// Every request with its kind and the size of its message.
fn requests() -> Vec<(u16, usize, Request)> {
    let (segid, apid) = (SegId(0x1122), ApId(0x3344));
    let make = ArenaMake {
        slot: 3,
        name: name(),
        size_bytes: 1 << 30,
        chunk_bytes: 4096,
        nr_banks: 4,
        hugetlb: Hugetlb::Auto,
        reader_gid: 100,
        retain: 3,
    };
    let role = Role::Exporter;
    let abi_version = 1;
    let timeout_ms = 500;
    let reason = EndReason::ProgramDied;
    let access = Access::ReadOnly;
    let policy = Policy::Every;
    let want = Want::After(9);
    let generation = 9;
    let segment = SegmentMake {
        name: name(),
        size_bytes: 1 << 21,
        mode: 0o640,
        gid: 100,
        hugetlb: Hugetlb::Yes,
        signallable: true,
    };
    let (offset, len) = (4096, 100);
    let target = Target::Segment(segid);
    vec![
        (1, 16, Request::Hello { role, abi_version }),
        (2, 88, Request::RegisterEnclave { name: name() }),
        (3, 112, Request::ArenaMake(make)),
        (4, 32, Request::Mapped { segid }),
        (
            5,
            88,
            Request::Name {
                segid,
                name: name(),
            },
        ),
        (6, 32, Request::ArenaEnd { segid, reason }),
        (
            7,
            88,
            Request::Lookup {
                name: name(),
                timeout_ms,
                live_only: true,
            },
        ),
        (8, 32, Request::Get { segid, access }),
        (9, 32, Request::Attach { apid, policy }),
        (10, 32, Request::Lease { apid, want }),
        (11, 32, Request::ReleaseLease { apid, generation }),
        (12, 32, Request::Detach { apid }),
        (13, 32, Request::Release { apid }),
        (14, 32, Request::Remove { segid }),
        (15, 32, Request::List { after: segid }),
        (16, 16, Request::Status),
        (17, 16, Request::Shutdown { force: true }),
        (18, 96, Request::SegmentMake(segment)),
        (19, 32, Request::SegmentAttach { apid, offset, len }),
        (20, 32, Request::Subscribe { target }),
        (21, 32, Request::Signal { target }),
        (22, 32, Request::Info { segid }),
        (23, 32, Request::Generations { segid }),
        (24, 32, Request::Retain { segid, count: 3 }),
        (
            25,
            32,
            Request::MakeRoom {
                bytes: 1 << 40,
                huge: true,
            },
        ),
        (26, 32, Request::Bell { apid, shared: true }),
        (27, 32, Request::Bells { segid }),
        (28, 88, Request::ForEnclave { name: name() }),
        (
            29,
            32,
            Request::Ears {
                target: Target::Access(apid),
            },
        ),
    ]
}

fn info(segid: u64) -> SegmentInfo {
    SegmentInfo {
        segid: SegId(segid),
        kind: SegmentKind::Plain,
        name: "flux".to_owned(),
        enclave: "a1".to_owned(),
        state: SegmentState::Ended,
        end_reason: Some(EndReason::ExporterGone),
        size_bytes: 1 << 30,
        chunk_bytes: 4096,
        nr_banks: 4,
        page_bytes: 2 << 20,
        latest_generation: 77,
        dropped: 5,
        discarded: 6,
        waited: 7,
        policy: 1,
        placement: 2,
        high_water: Some(9),
        signals: 8,
        throttled: 6,
        readers: 2,
        leases: 3,
        owner_uid: 1000,
        gid: 100,
        mode: 0o640,
        age_ms: 123,
        retain: 2,
        retained_ms: 1000,
    }
}

fn generation(generation: u64) -> Generation {
    Generation {
        generation,
        is_leased: generation == 7,
        record: GenerationRecord {
            generation,
            step: 10 * generation,
            ..GenerationRecord::default()
        },
    }
}

/// Every reply with its kind and the size of its message.
fn replies() -> Vec<(u16, usize, Reply)> {
    let segid = SegId(0x1122);
    let error = Reply::Error {
        errno: 13,
        text: "no".to_owned(),
    };
    let attached = Attached {
        segid,
        size_bytes: 1 << 30,
        chunk_bytes: 4096,
        nr_banks: 4,
        page_bytes: 4096,
    };
    let granted = LeaseReply::Granted {
        generation: 9,
        record: GenerationRecord {
            generation: 9,
            step: 90,
            ..GenerationRecord::default()
        },
    };
    let memory = Memory {
        segid,
        size_bytes: 1 << 21,
        page_bytes: 4096,
        access: Access::ReadWrite,
    };
    let status = Status {
        pid: 1,
        clients: 2,
        throttled: 3,
        ..Status::default()
    };
    vec![
        (128, 32, Reply::Ok),
        (129, 208, error),
        (
            130,
            32,
            Reply::Welcome {
                abi_version: 1,
                pid: 2,
            },
        ),
        (131, 32, Reply::LeasePage),
        (
            132,
            32,
            Reply::Arena {
                segid,
                object_bytes: 1 << 32,
                page_bytes: 4096,
            },
        ),
        (133, 32, Reply::Segment { segid }),
        (134, 32, Reply::Granted { apid: ApId(5) }),
        (135, 40, Reply::Attached(attached)),
        (136, 88, Reply::Lease(granted)),
        (137, 4096, Reply::Segments(vec![info(1), info(2)])),
        (138, 80, Reply::Status(status)),
        (
            139,
            32,
            Reply::Made {
                segid,
                size_bytes: 1 << 21,
                page_bytes: 2 << 20,
            },
        ),
        (140, 32, Reply::Memory(memory)),
        (141, 32, Reply::Subscribed),
        (
            142,
            1216,
            Reply::Generations(vec![generation(7), generation(9)]),
        ),
        (143, 32, Reply::Room { bytes: 1 << 40 }),
        (144, 32, Reply::Bell),
        (
            145,
            32,
            Reply::Bells {
                all: 0x8001,
                fresh: 0x8000,
            },
        ),
        (
            146,
            32,
            Reply::Ears {
                version: 7,
                rate: 20_000,
                count: 3,
            },
        ),
    ]
}

#[test]
fn every_request_encodes_to_its_kind_and_size() {
    for (number, (kind, size, request)) in (1..).zip(requests()) {
        assert_eq!(kind, number, "{request:?} is missing or out of order");
        let bytes = request.encode(0xaabb_ccdd);
        assert_eq!(bytes.len(), size, "{request:?}");
        assert_eq!(bytes[..2], PROTOCOL_VERSION.to_le_bytes());
        assert_eq!(bytes[2..4], kind.to_le_bytes());
        assert_eq!(bytes[4..8], 0xaabb_ccdd_u32.to_le_bytes());
    }
}

#[test]
fn every_request_decodes_to_itself() {
    for (_, _, request) in requests() {
        assert_eq!(Request::decode(&request.encode(7)), Ok((7, request)));
    }
    for want in [Want::Latest, Want::Exactly(7)] {
        let apid = ApId(1);
        let lease = Request::Lease { apid, want };
        assert_eq!(Request::decode(&lease.encode(8)), Ok((8, lease)));
    }
    let target = Target::Access(ApId(1));
    let signal = Request::Signal { target };
    assert_eq!(Request::decode(&signal.encode(8)), Ok((8, signal)));
}

#[test]
fn every_reply_encodes_to_its_kind_and_size() {
    for (number, (kind, size, reply)) in (128..).zip(replies()) {
        assert_eq!(kind, number, "{reply:?} is missing or out of order");
        let bytes = reply.encode(1);
        assert_eq!(bytes.len(), size, "{reply:?}");
        assert!(bytes.len() <= MAX_MESSAGE);
        assert_eq!(bytes[2..4], kind.to_le_bytes());
    }
}

#[test]
fn every_reply_decodes_to_itself() {
    let more = [
        Reply::Lease(LeaseReply::None),
        Reply::Lease(LeaseReply::Ended(EndReason::Removed)),
        Reply::Segments(Vec::new()),
        Reply::Generations(Vec::new()),
        Reply::Made {
            segid: SegId(1),
            size_bytes: 0,
            page_bytes: 4096,
        },
    ];
    assert_eq!(more[4].nr_fds(), 0, "signals need no memory");
    for reply in replies().into_iter().map(|row| row.2).chain(more) {
        assert_eq!(Reply::decode(&reply.encode(7)), Ok((7, reply)));
    }
}

#[test]
fn fields_stand_where_the_layout_says() {
    let request = Request::ReleaseLease {
        apid: ApId(0x0102),
        generation: 0x0304,
    };
    let bytes = request.encode(0);
    assert_eq!(bytes[8..16], 0x0102_u64.to_le_bytes());
    assert_eq!(bytes[16..24], 0x0304_u64.to_le_bytes());
    let lookup = Request::Lookup {
        name: name(),
        timeout_ms: 9,
        live_only: false,
    };
    let bytes = lookup.encode(0);
    assert_eq!(&bytes[16..21], b"flux\0");
    assert_eq!(bytes[80..84], 9_u32.to_le_bytes());
}

#[test]
fn a_message_of_another_length_is_refused() {
    for (_, size, request) in requests() {
        let mut bytes = request.encode(0);
        bytes.push(0);
        let (got, want) = (size + 1, size);
        assert_eq!(
            Request::decode(&bytes),
            Err(WireError::Long { got, want }),
            "{request:?}"
        );
        bytes.truncate(size - 1);
        let got = size - 1;
        assert_eq!(
            Request::decode(&bytes),
            Err(WireError::Short { got, want }),
            "{request:?}"
        );
    }
    for (_, size, reply) in replies() {
        let mut bytes = reply.encode(0);
        bytes.truncate(size - 1);
        assert!(matches!(
            Reply::decode(&bytes),
            Err(WireError::Short { .. })
        ));
    }
    assert!(matches!(
        Request::decode(&[]),
        Err(WireError::Short { got: 0, .. })
    ));
    let huge = vec![1; MAX_MESSAGE + 1];
    assert!(matches!(
        Request::decode(&huge),
        Err(WireError::Long { .. })
    ));
}

#[test]
fn another_version_is_refused_whatever_follows() {
    for (_, _, request) in requests() {
        let mut bytes = request.encode(3);
        bytes[0] = 9;
        bytes.truncate(9);
        assert_eq!(Request::decode(&bytes), Err(WireError::Version(9)));
        assert_eq!(seq_of(&bytes), 3);
    }
    let mut bytes = Reply::Ok.encode(3);
    bytes[1] = 1;
    assert_eq!(
        Reply::decode(&bytes),
        Err(WireError::Version(256 + PROTOCOL_VERSION))
    );
}

#[test]
fn an_unknown_kind_is_refused() {
    for kind in [0_u16, 30, 127, 129, 138, 139, u16::MAX] {
        let mut bytes = Request::Status.encode(0);
        bytes[2..4].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(Request::decode(&bytes), Err(WireError::Kind(kind)));
    }
    for kind in [0_u16, 1, 127, 147, u16::MAX] {
        let mut bytes = Reply::Ok.encode(0);
        bytes[2..4].copy_from_slice(&kind.to_le_bytes());
        assert_eq!(Reply::decode(&bytes), Err(WireError::Kind(kind)));
    }
}

#[test]
fn numbers_without_meaning_are_refused() {
    // (request, offset of the field, its name)
    let cases = [
        (0, 8, "role"),
        (2, 96, "hugetlb"),
        (5, 24, "reason"),
        (6, 8, "live_only"),
        (7, 24, "access"),
        (8, 24, "policy"),
        (9, 24, "want"),
        (16, 8, "force"),
        (17, 96 - 8, "hugetlb"),
        (17, 96 - 4, "flags"),
        (19, 24, "target"),
        (20, 24, "target"),
        (24, 24, "huge"),
    ];
    for (index, offset, field) in cases {
        let mut bytes = requests()[index].2.encode(0);
        bytes[offset..offset + 4].copy_from_slice(&77_u32.to_le_bytes());
        let value = 77;
        assert_eq!(
            Request::decode(&bytes),
            Err(WireError::Value { field, value })
        );
    }
    let cases = [
        (1, 12, "text_bytes"),
        (8, 16, "outcome"),
        (9, 8, "count"),
        (9, 16 + 216, "state"),
        (9, 16 + 220, "end_reason"),
        (9, 16 + 252, "kind"),
        (12, 8 + 20, "access"),
        (14, 8, "count"),
    ];
    for (index, offset, field) in cases {
        let mut bytes = replies()[index].2.encode(0);
        bytes[offset..offset + 4].copy_from_slice(&777_u32.to_le_bytes());
        let value = 777;
        assert_eq!(
            Reply::decode(&bytes),
            Err(WireError::Value { field, value }),
            "{field}"
        );
    }
}

#[test]
fn an_error_that_is_none_is_refused() {
    for errno in [0_u32, 4096, u32::MAX] {
        let mut bytes = replies()[1].2.encode(0);
        bytes[8..12].copy_from_slice(&errno.to_le_bytes());
        let (field, value) = ("errno", errno);
        assert_eq!(
            Reply::decode(&bytes),
            Err(WireError::Value { field, value })
        );
    }
}

#[test]
fn long_texts_are_cut_between_characters() {
    let text = "ä".repeat(200);
    let reply = Reply::Error {
        errno: 1,
        text: format!("x{text}"),
    };
    let Ok((_, Reply::Error { text, .. })) = Reply::decode(&reply.encode(0)) else {
        panic!("an error reply");
    };
    assert_eq!(text.len(), 191);
    assert!(text.ends_with('ä'));
}

fn pair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socketpair")
}

#[test]
fn packets_carry_bytes_and_descriptors() {
    let (left, right) = pair();
    let fd = eventfd(5, EventfdFlags::CLOEXEC).expect("eventfd");
    send(&left, b"hello", &[fd.as_fd(), fd.as_fd()]).expect("sent");
    let packet = receive(&right).expect("received");
    assert_eq!(packet.bytes, b"hello");
    assert_eq!(packet.fds.len(), 2);
    assert!(!packet.fds_cut);
    let mut count = [0; 8];
    rustix::io::read(&packet.fds[0], &mut count).expect("an eventfd");
    assert_eq!(u64::from_ne_bytes(count), 5);
    drop(left);
    assert!(receive(&right).expect("the end").bytes.is_empty());
}

#[test]
fn too_many_descriptors_are_refused_by_the_sender_and_cut_by_the_receiver() {
    let (left, right) = pair();
    let fd = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let too_many = [fd.as_fd(); MAX_FDS + 1];
    assert_eq!(
        send(&left, b"x", &too_many),
        Err(rustix::io::Errno::MSGSIZE)
    );
    let mut space = [core::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3 * MAX_FDS))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let many = [fd.as_fd(); 3 * MAX_FDS];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&many)));
    let parts = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(&left, &parts, &mut control, rustix::net::SendFlags::empty())
        .expect("sent");
    let packet = receive(&right).expect("received");
    assert!(packet.fds_cut);
    assert!(packet.fds.len() < 3 * MAX_FDS);
}

#[test]
fn a_packet_that_is_too_long_shows_as_such() {
    let (left, right) = pair();
    send(&left, &vec![1; 2 * MAX_MESSAGE], &[]).expect("sent");
    let packet = receive(&right).expect("received");
    assert_eq!(packet.bytes.len(), MAX_MESSAGE + 1);
    let refused = Request::decode(&packet.bytes);
    assert!(matches!(refused, Err(WireError::Long { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn spoilt_messages_are_refused_or_mean_something_else(
        index in 0..41_usize, at in 0..4096_usize, byte in any::<u8>(), cut in 0..4096_usize
    ) {
        let mut messages: Vec<Vec<u8>> = Vec::new();
        messages.extend(requests().iter().map(|row| row.2.encode(1)));
        messages.extend(replies().iter().map(|row| row.2.encode(1)));
        let bytes = &mut messages[index];
        let len = bytes.len();
        bytes[at % len] = byte;
        // What is accepted says the same when said again.
        if let Ok((seq, request)) = Request::decode(bytes) {
            prop_assert_eq!(Request::decode(&request.encode(seq)), Ok((seq, request)));
        }
        if let Ok((seq, reply)) = Reply::decode(bytes) {
            prop_assert_eq!(Reply::decode(&reply.encode(seq)), Ok((seq, reply)));
        }
        prop_assert!(Request::decode(&bytes[..cut % len]).is_err());
        prop_assert!(Reply::decode(&bytes[..cut % len]).is_err());
    }

    #[test]
    fn random_bytes_are_no_reason_to_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..256)
    ) {
        let _ = (Request::decode(&bytes), Reply::decode(&bytes));
    }
}
