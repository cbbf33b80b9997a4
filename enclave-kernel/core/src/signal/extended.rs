//! The extended state in a signal frame: the standard form of XSAVE with
//! Linux's marks (`asm/sigcontext.h`, Intel SDM vol. 1 §13.4).
//!
//! What a program hands back is made such that XRSTOR takes it: MXCSR without
//! reserved bits, no component that is not there, no compaction, zeroes where
//! the header has to be zero. x87 and SSE are always written out, so that it
//! makes no difference who loads it, the processor or KVM.

/// Bytes of the legacy area, which FXSAVE knew.
pub const LEGACY_BYTES: usize = 512;
/// Header behind it.
const HEADER: usize = 512;
const HEADER_END: usize = 576;
/// Linux's marks in the legacy area's free bytes.
const MARKS: usize = 464;
const MAGIC1: u32 = 0x4650_5853;
/// Behind the state.
const MAGIC2: u32 = 0x4650_5845;
/// Bytes of [`MAGIC2`].
const MAGIC2_BYTES: usize = 4;
/// MXCSR, and which of its bits the processor has.
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
/// What the mask is where the processor says nothing (SDM vol. 1 §11.6.6).
const MXCSR_MASK_DEFAULT: u32 = 0xffbf;
const MXCSR_INITIAL: u32 = 0x1f80;
const CONTROL_INITIAL: u16 = 0x37f;
const XMM: core::ops::Range<usize> = 160..416;
const X87: u64 = 1;
const SSE: u64 = 2;

/// What there is to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Components, as in XCR0.
    pub components: u64,
    /// Bytes of the area.
    pub bytes: usize,
}

impl Layout {
    /// Bytes in a signal frame.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        (self.bytes + MAGIC2_BYTES) as u64
    }
}

fn word<const N: usize>(area: &[u8], at: usize) -> Option<[u8; N]> {
    area.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(area: &[u8], at: usize) -> u32 {
    word(area, at).map_or(0, u32::from_le_bytes)
}

fn u64_at(area: &[u8], at: usize) -> u64 {
    word(area, at).map_or(0, u64::from_le_bytes)
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = area.get_mut(at..at.saturating_add(bytes.len())) {
        place.copy_from_slice(bytes);
    }
}

fn clear(area: &mut [u8], range: core::ops::Range<usize>) {
    if let Some(place) = area.get_mut(range) {
        place.fill(0);
    }
}

/// The state that a handler begins with, in `area` of a page.
pub fn initial(area: &mut [u8]) {
    area.fill(0);
    put(area, 0, &CONTROL_INITIAL.to_le_bytes());
    put(area, MXCSR, &MXCSR_INITIAL.to_le_bytes());
    put(area, HEADER, &(X87 | SSE).to_le_bytes());
}

/// Puts Linux's marks into a saved area of `layout.frame_bytes()`.
pub fn mark(area: &mut [u8], layout: Layout) {
    let number = |bytes| u32::try_from(bytes).unwrap_or(0).to_le_bytes();
    clear(area, MARKS..LEGACY_BYTES);
    put(area, MARKS, &MAGIC1.to_le_bytes());
    put(area, MARKS + 4, &number(layout.bytes + MAGIC2_BYTES));
    put(area, MARKS + 8, &layout.components.to_le_bytes());
    put(area, MARKS + 16, &number(layout.bytes));
    put(area, layout.bytes, &MAGIC2.to_le_bytes());
}

/// What a program says about the area that it hands back, from its legacy part:
/// its bytes and its components; `None` when there is the legacy part only.
fn extent(legacy: &[u8], layout: Layout) -> Option<(usize, u64)> {
    let bytes = u32_at(legacy, MARKS + 16);
    let extended = u32_at(legacy, MARKS + 4);
    let size = usize::try_from(bytes).ok()?;
    let is_good = u32_at(legacy, MARKS) == MAGIC1
        && (HEADER_END..=layout.bytes).contains(&size)
        && bytes <= extended;
    is_good.then(|| (size, u64_at(legacy, MARKS + 8)))
}

/// Makes what a program hands back loadable. `read(offset, into)` copies from
/// its area; `area` is a page for the result. `mask` is the MXCSR_MASK that this
/// processor saves.
///
/// # Errors
/// `None` when it cannot be read or when the processor would refuse it.
pub fn restore(
    area: &mut [u8],
    layout: Layout,
    mask: u32,
    mut read: impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Option<()> {
    area.fill(0);
    read(0, area.get_mut(..LEGACY_BYTES)?)?;
    let mut present = X87 | SSE;
    if let Some((bytes, components)) = extent(area, layout) {
        let mut magic = [0; MAGIC2_BYTES];
        read(bytes as u64, &mut magic)?;
        if u32::from_le_bytes(magic) == MAGIC2 {
            read(LEGACY_BYTES as u64, area.get_mut(LEGACY_BYTES..bytes)?)?;
            let saved = u64_at(area, HEADER);
            let reserved = area.get(HEADER + 8..HEADER_END)?;
            if saved & !layout.components != 0 || reserved.iter().any(|&byte| byte != 0) {
                return None;
            }
            present = saved & components;
        }
    }
    let mask = if mask == 0 { MXCSR_MASK_DEFAULT } else { mask };
    if u32_at(area, MXCSR) & !mask != 0 {
        return None;
    }
    if present & X87 == 0 {
        clear(area, 0..MXCSR);
        clear(area, MXCSR + 8..XMM.start);
        put(area, 0, &CONTROL_INITIAL.to_le_bytes());
    }
    if present & SSE == 0 {
        clear(area, XMM);
    }
    put(area, MXCSR_MASK, &mask.to_le_bytes());
    clear(area, XMM.end..LEGACY_BYTES);
    put(area, HEADER, &(present | X87 | SSE).to_le_bytes());
    Some(())
}

/// The MXCSR_MASK in an area that this processor saved.
#[must_use]
pub fn mxcsr_mask(area: &[u8]) -> u32 {
    u32_at(area, MXCSR_MASK)
}

/// Control and status word of the x87 and MXCSR of a saved area.
#[must_use]
pub fn float_state(area: &[u8]) -> (u16, u16, u32) {
    let half = |at| word(area, at).map_or(0, u16::from_le_bytes);
    (half(0), half(2), u32_at(area, MXCSR))
}
