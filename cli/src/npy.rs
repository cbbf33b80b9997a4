//! NumPy's file format, version 1.0, for one variable of a snapshot.
//!
//! Pure: from a checked description and its bytes to a header and the element
//! bytes in the order the header says. Contiguous variables go out as they
//! are (C or Fortran order), others are gathered in C order.

use enclave_abi::arena::{VarDesc, dtype};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// The data begins at a multiple of this.
const ALIGN: usize = 64;

/// Why a variable has no NumPy form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NpyError {
    /// NumPy has no such element type.
    Dtype,
    /// Elements lie on top of each other, or are more than the bytes there.
    Overlap,
}

impl std::fmt::Display for NpyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dtype => "NumPy has no type for its elements",
            Self::Overlap => "its elements overlap",
        })
    }
}

/// How a variable goes into a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
    /// Do the bytes go out as they lie in memory?
    contiguous: bool,
    element_bytes: usize,
    /// Bytes of all elements.
    total_bytes: usize,
}

/// NumPy's type string of a variable's elements, lanes aside.
pub(crate) fn type_string(var: &VarDesc) -> Option<String> {
    let letter = match (var.dtype_code, var.dtype_bits) {
        (dtype::INT, 8 | 16 | 32 | 64) => 'i',
        (dtype::UINT, 8 | 16 | 32 | 64) => 'u',
        (dtype::FLOAT, 16 | 32 | 64) => 'f',
        (dtype::COMPLEX, 64 | 128) => 'c',
        _ => return None,
    };
    let bytes = var.dtype_bits / 8;
    let endian = if bytes == 1 { '|' } else { '<' };
    Some(format!("{endian}{letter}{bytes}"))
}

/// Decides how a (checked) variable goes into a file.
pub(crate) fn layout(var: &VarDesc) -> Result<Layout, NpyError> {
    let descr = type_string(var).ok_or(NpyError::Dtype)?;
    let ndim = usize::try_from(var.ndim).map_err(|_| NpyError::Overlap)?;
    let mut shape: Vec<u64> = var.shape.iter().take(ndim).copied().collect();
    let strides: Vec<i64> = var.strides.iter().take(ndim).copied().collect();
    let element = var.element_bytes();
    let is_c = is_contiguous(shape.iter().rev().zip(strides.iter().rev()), element);
    let is_fortran = is_contiguous(shape.iter().zip(&strides), element);
    let total = shape
        .iter()
        .try_fold(element, |bytes, &count| bytes.checked_mul(count))
        .filter(|&bytes| bytes <= var.nbytes)
        .ok_or(NpyError::Overlap)?;
    let fortran_order = is_fortran && !is_c;
    if var.dtype_lanes > 1 {
        // The lanes of an element are neighbours: the fastest dimension.
        let lanes = u64::from(var.dtype_lanes);
        let place = if fortran_order { 0 } else { shape.len() };
        shape.insert(place, lanes);
    }
    Ok(Layout {
        descr,
        fortran_order,
        shape,
        contiguous: is_c || is_fortran,
        element_bytes: usize::try_from(element).map_err(|_| NpyError::Overlap)?,
        total_bytes: usize::try_from(total).map_err(|_| NpyError::Overlap)?,
    })
}

/// Whether dimensions, fastest first, follow each other without holes. The
/// stride of a dimension with one element means nothing.
fn is_contiguous<'a>(dims: impl Iterator<Item = (&'a u64, &'a i64)>, element: u64) -> bool {
    let mut wanted = element;
    for (&count, &stride) in dims {
        if count != 1 && u64::try_from(stride) != Ok(wanted) {
            return false;
        }
        let Some(next) = wanted.checked_mul(count) else {
            return false;
        };
        wanted = next;
    }
    true
}

/// The file's header, padded so that the data is aligned.
pub(crate) fn header(layout: &Layout) -> Vec<u8> {
    let order = if layout.fortran_order {
        "True"
    } else {
        "False"
    };
    let shape = match layout.shape.as_slice() {
        [] => "()".to_owned(),
        [one] => format!("({one},)"),
        more => {
            let texts: Vec<String> = more.iter().map(u64::to_string).collect();
            format!("({})", texts.join(", "))
        }
    };
    let mut text = format!(
        "{{'descr': '{}', 'fortran_order': {order}, 'shape': {shape}, }}",
        layout.descr
    );
    let fixed = MAGIC.len() + size_of::<u16>();
    while !(fixed + text.len() + 1).is_multiple_of(ALIGN) {
        text.push(' ');
    }
    text.push('\n');
    let mut header = MAGIC.to_vec();
    // At most 9 dimensions of 20 digits: far below 64 KiB.
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    header.extend_from_slice(&len.to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header
}

/// Hands the element bytes to `out`, in pieces, in the file's order.
pub(crate) fn elements<E>(
    layout: &Layout,
    var: &VarDesc,
    bytes: &[u8],
    mut out: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    if layout.contiguous {
        return out(bytes.get(..layout.total_bytes).unwrap_or(bytes));
    }
    let ndim = usize::try_from(var.ndim).unwrap_or(0).min(var.shape.len());
    let mut index = vec![0u64; ndim];
    let count = layout.total_bytes / layout.element_bytes.max(1);
    for _ in 0..count {
        let offset = index
            .iter()
            .zip(&var.strides)
            .map(|(&i, &stride)| i.saturating_mul(u64::try_from(stride).unwrap_or(0)))
            .fold(0u64, u64::saturating_add);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(layout.element_bytes);
        // Inside for a checked variable; a wrong one gives fewer bytes.
        out(bytes.get(start..end).unwrap_or_default())?;
        advance(&mut index, &var.shape);
    }
    Ok(())
}

/// The next index in C order.
fn advance(index: &mut [u64], shape: &[u64]) {
    for (i, &count) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < count {
            return;
        }
        *i = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enclave_abi::arena::MAX_NDIM;

    fn var(code: u8, bits: u8, shape: &[u64], strides: &[i64]) -> VarDesc {
        let mut desc = VarDesc {
            name: [0; 120],
            dtype_code: code,
            dtype_bits: bits,
            dtype_lanes: 1,
            ndim: u32::try_from(shape.len()).unwrap(),
            shape: [0; MAX_NDIM],
            strides: [0; MAX_NDIM],
            offset: 0,
            nbytes: 1 << 20,
            order: b'C',
            role: 0,
            pad: [0; 6],
            unit: [0; 32],
            axis_labels: [0; 64],
            reserved: [0; 136],
        };
        desc.name[0] = b'v';
        desc.shape[..shape.len()].copy_from_slice(shape);
        desc.strides[..strides.len()].copy_from_slice(strides);
        desc
    }

    fn text(desc: &VarDesc) -> String {
        let header = header(&layout(desc).unwrap());
        assert_eq!(header.len() % 64, 0);
        assert_eq!(&header[..8], b"\x93NUMPY\x01\x00");
        let len = u16::from_le_bytes([header[8], header[9]]);
        assert_eq!(usize::from(len), header.len() - 10);
        assert_eq!(header.last(), Some(&b'\n'));
        String::from_utf8(header[10..].to_vec())
            .unwrap()
            .trim()
            .to_owned()
    }

    fn gathered(desc: &VarDesc, bytes: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        let taken = elements(&layout(desc).unwrap(), desc, bytes, |piece| {
            all.extend_from_slice(piece);
            Ok::<(), ()>(())
        });
        assert_eq!(taken, Ok(()));
        all
    }

    #[test]
    fn both_orders_are_told_from_the_strides() {
        assert_eq!(
            text(&var(dtype::FLOAT, 64, &[3, 4], &[32, 8])),
            "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }"
        );
        assert_eq!(
            text(&var(dtype::FLOAT, 32, &[3, 4], &[4, 12])),
            "{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }"
        );
    }

    #[test]
    fn scalars_and_vectors_have_pythons_tuples() {
        assert!(text(&var(dtype::INT, 8, &[], &[])).contains("'|i1'"));
        assert!(text(&var(dtype::INT, 8, &[], &[])).contains("'shape': ()"));
        assert!(text(&var(dtype::UINT, 16, &[5], &[2])).contains("'shape': (5,)"));
        assert!(text(&var(dtype::COMPLEX, 128, &[1], &[0])).contains("'<c16'"));
    }

    #[test]
    fn lanes_are_the_fastest_dimension() {
        let mut c = var(dtype::FLOAT, 32, &[2, 3], &[36, 12]);
        c.dtype_lanes = 3;
        assert!(text(&c).contains("'fortran_order': False, 'shape': (2, 3, 3)"));
        let mut f = var(dtype::FLOAT, 32, &[2, 5], &[12, 24]);
        f.dtype_lanes = 3;
        assert!(text(&f).contains("'fortran_order': True, 'shape': (3, 2, 5)"));
    }

    #[test]
    fn holes_are_gathered_away_in_c_order() {
        let bytes: Vec<u8> = (0..16).collect();
        let every_other = var(dtype::UINT, 8, &[2, 2], &[8, 2]);
        assert_eq!(gathered(&every_other, &bytes), [0, 2, 8, 10]);
        let contiguous = var(dtype::UINT, 8, &[2, 4], &[4, 1]);
        assert_eq!(gathered(&contiguous, &bytes), (0..8).collect::<Vec<u8>>());
        let fortran = var(dtype::UINT, 8, &[2, 4], &[1, 2]);
        assert_eq!(gathered(&fortran, &bytes), (0..8).collect::<Vec<u8>>());
    }

    #[test]
    fn what_would_blow_up_is_refused() {
        let broadcast = var(dtype::FLOAT, 64, &[1 << 62], &[0]);
        assert_eq!(layout(&broadcast), Err(NpyError::Overlap));
        let product = var(dtype::UINT, 8, &[1 << 32, 1 << 32, 2], &[0, 0, 0]);
        assert_eq!(layout(&product), Err(NpyError::Overlap));
        for (code, bits) in [
            (dtype::FLOAT, 8),
            (dtype::INT, 128),
            (dtype::COMPLEX, 32),
            (9, 64),
        ] {
            assert_eq!(layout(&var(code, bits, &[1], &[1])), Err(NpyError::Dtype));
        }
    }
}
