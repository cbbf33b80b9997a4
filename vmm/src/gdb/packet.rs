//! Framing of the remote serial protocol: `$data#sum`, acknowledged by `+`.
//!
//! Pure. Whatever bytes come, [`Reader`] holds at most [`MAX_BYTES`] and hands
//! out whole packets with the right sum, interrupts and nothing else.

/// Longest packet, both ways; gdb is told.
pub const MAX_BYTES: usize = 4096;
/// What gdb sends for Ctrl-C, between packets.
const INTERRUPT: u8 = 3;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A packet's data, unescaped.
    Packet(Vec<u8>),
    /// A packet to be sent again: wrong sum or too long.
    Broken,
    /// Ctrl-C.
    Interrupt,
}

/// Takes bytes, gives items.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    /// Adds what was received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next item, if there is a whole one.
    pub fn next_item(&mut self) -> Option<Item> {
        let start = self.bytes.iter().position(|&b| b == b'$' || b == INTERRUPT);
        let Some(start) = start else {
            // Acknowledgements and noise.
            self.bytes.clear();
            return None;
        };
        self.bytes.drain(..start);
        if self.bytes.first() == Some(&INTERRUPT) {
            self.bytes.drain(..1);
            return Some(Item::Interrupt);
        }
        let Some(end) = self.bytes.iter().position(|&b| b == b'#') else {
            return self.too_long();
        };
        let sum = self.bytes.get(end + 1..end + 3)?;
        let claimed = std::str::from_utf8(sum)
            .ok()
            .and_then(|text| u8::from_str_radix(text, 16).ok());
        let data: Vec<u8> = self.bytes.drain(..end + 3).skip(1).take(end - 1).collect();
        if claimed != Some(sum_of(&data)) {
            return Some(Item::Broken);
        }
        Some(Item::Packet(unescape(&data)))
    }

    fn too_long(&mut self) -> Option<Item> {
        if self.bytes.len() <= 2 * MAX_BYTES {
            return None;
        }
        self.bytes.clear();
        Some(Item::Broken)
    }
}

fn sum_of(data: &[u8]) -> u8 {
    data.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

fn unescape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => out.extend(bytes.next().map(|&next| next ^ 0x20)),
            _ => out.push(byte),
        }
    }
    out
}

/// `text` as a packet. Our answers are hexadecimal and XML, which need no escape
/// but for the four characters that the framing takes.
#[must_use]
pub fn encode(text: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(text.len() + 4);
    for byte in text.bytes() {
        match byte {
            b'#' | b'$' | b'}' | b'*' => data.extend([b'}', byte ^ 0x20]),
            _ => data.push(byte),
        }
    }
    let sum = sum_of(&data);
    let mut packet = vec![b'$'];
    packet.append(&mut data);
    packet.extend(format!("#{sum:02x}").bytes());
    packet
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hexadecimal digits as bytes; `None` if they are none.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.bytes().all(|digit| digit.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    let digits = text.as_bytes().chunks_exact(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(bytes: &[u8]) -> Vec<Item> {
        let mut reader = Reader::default();
        reader.push(bytes);
        std::iter::from_fn(|| reader.next_item()).collect()
    }

    #[test]
    fn packets_come_whole_or_not_at_all() {
        let packet = |text: &str| Item::Packet(text.into());
        assert_eq!(items(b"+$g#67"), [packet("g")]);
        assert_eq!(items(b"$g#6"), []);
        assert_eq!(items(b"$m1,2#"), []);
        assert_eq!(items(b"+-noise\x03$c#63"), [Item::Interrupt, packet("c")]);
        let mut reader = Reader::default();
        for &byte in b"$?#3" {
            reader.push(&[byte]);
            assert_eq!(reader.next_item(), None);
        }
        reader.push(b"f");
        assert_eq!(reader.next_item(), Some(packet("?")));
    }

    #[test]
    fn broken_packets_are_asked_for_again() {
        assert_eq!(items(b"$g#00"), [Item::Broken]);
        assert_eq!(
            items(b"$g#zz$c#63"),
            [Item::Broken, Item::Packet("c".into())]
        );
        let long = [b"$".to_vec(), vec![b'a'; 3 * MAX_BYTES]].concat();
        assert_eq!(items(&long), [Item::Broken]);
    }

    #[test]
    fn what_is_escaped_comes_back() {
        let text = "a#b$c}d*e";
        let mut reader = Reader::default();
        reader.push(&encode(text));
        assert_eq!(reader.next_item(), Some(Item::Packet(text.into())));
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(to_hex(&[0, 0xff, 0x1a]), "00ff1a");
        assert_eq!(from_hex("00ff1A"), Some(vec![0, 0xff, 0x1a]));
        for nonsense in ["0", "0g", "+1", "\u{e4}", "0 "] {
            assert_eq!(from_hex(nonsense), None, "{nonsense}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes: Vec<u8>, cut in 0_usize..64) {
            let mut reader = Reader::default();
            for part in bytes.chunks(cut.max(1)) {
                reader.push(part);
                while reader.next_item().is_some() {}
            }
        }
    }
}
