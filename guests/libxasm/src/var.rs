//! [`Var`]: what readers learn about one variable of an arena.
//!
//! Packed into `enclave_abi::arena::VarDesc`, the entry of the variable table
//! that travels with every snapshot. Packing is pure and checks everything the
//! kernel will check, so that a mistake is reported before the call.

use crate::array::{Array, Element};
use crate::errno::Errno;
use enclave_abi::arena::{MAX_NDIM, VarDesc, VarError, dtype};

/// Element type of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Dtype {
    /// 64-bit float.
    F64 = 1,
    /// 32-bit float.
    F32 = 2,
    /// 64-bit signed integer.
    I64 = 3,
    /// 32-bit signed integer.
    I32 = 4,
    /// 16-bit signed integer.
    I16 = 5,
    /// 8-bit signed integer.
    I8 = 6,
    /// 64-bit unsigned integer.
    U64 = 7,
    /// 32-bit unsigned integer.
    U32 = 8,
    /// 16-bit unsigned integer.
    U16 = 9,
    /// 8-bit unsigned integer.
    U8 = 10,
    /// Complex of two 64-bit floats.
    C128 = 11,
    /// Complex of two 32-bit floats.
    C64 = 12,
}

impl Dtype {
    /// DLPack code and bits of one element.
    const fn code_and_bits(self) -> (u8, u8) {
        match self {
            Self::F64 => (dtype::FLOAT, 64),
            Self::F32 => (dtype::FLOAT, 32),
            Self::I64 => (dtype::INT, 64),
            Self::I32 => (dtype::INT, 32),
            Self::I16 => (dtype::INT, 16),
            Self::I8 => (dtype::INT, 8),
            Self::U64 => (dtype::UINT, 64),
            Self::U32 => (dtype::UINT, 32),
            Self::U16 => (dtype::UINT, 16),
            Self::U8 => (dtype::UINT, 8),
            Self::C128 => (dtype::COMPLEX, 128),
            Self::C64 => (dtype::COMPLEX, 64),
        }
    }

    /// Whether `desc` is of elements of this type, one after the other.
    pub(crate) fn describes(self, desc: &VarDesc) -> bool {
        (desc.dtype_code, desc.dtype_bits) == self.code_and_bits() && desc.dtype_lanes == 1
    }

    /// The type of a described variable's elements; `None` if this library has no
    /// name for it.
    #[must_use]
    pub fn described(desc: &VarDesc) -> Option<Self> {
        (1..=12)
            .filter_map(|number| Self::try_from(number).ok())
            .find(|dtype| dtype.describes(desc))
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.code_and_bits().1 as u64 / 8
    }
}

impl TryFrom<u32> for Dtype {
    type Error = u32;

    fn try_from(value: u32) -> Result<Self, u32> {
        Ok(match value {
            1 => Self::F64,
            2 => Self::F32,
            3 => Self::I64,
            4 => Self::I32,
            5 => Self::I16,
            6 => Self::I8,
            7 => Self::U64,
            8 => Self::U32,
            9 => Self::U16,
            10 => Self::U8,
            11 => Self::C128,
            12 => Self::C64,
            other => return Err(other),
        })
    }
}

/// Which index runs fastest in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last, as in C.
    C,
    /// The first, as in Fortran.
    Fortran,
}

impl TryFrom<u8> for Order {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        match value {
            b'C' | b'c' => Ok(Self::C),
            b'F' | b'f' => Ok(Self::Fortran),
            other => Err(other),
        }
    }
}

/// What a variable is on a mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Plain data.
    #[default]
    Data = 0,
    /// Coordinates.
    Coordinate = 1,
    /// A field with one value per element (cell).
    ElementField = 2,
    /// A field with one value per vertex.
    VertexField = 3,
}

impl TryFrom<u8> for Role {
    type Error = u8;

    fn try_from(value: u8) -> Result<Self, u8> {
        match value {
            0 => Ok(Self::Data),
            1 => Ok(Self::Coordinate),
            2 => Ok(Self::ElementField),
            3 => Ok(Self::VertexField),
            other => Err(other),
        }
    }
}

/// One variable: name, type, shape and place.
#[derive(Clone, Copy, Debug)]
pub struct Var<'a> {
    /// Name of at most 119 bytes; `/` makes a path.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Elements per dimension; empty for a scalar.
    pub shape: &'a [u64],
    /// Which index runs fastest.
    pub order: Order,
    /// Bytes from the arena's start.
    pub offset: u64,
    /// Unit of at most 31 bytes, for example `cm-2 s-1`.
    pub unit: &'a str,
    /// Comma-separated axis labels of at most 63 bytes, for example `x,y,z`.
    pub axes: &'a str,
    /// What it is on a mesh.
    pub role: Role,
}

impl<'a> Var<'a> {
    /// An array with a shape, whose product should be the array's length.
    #[must_use]
    pub const fn array<T: Element>(
        name: &'a str,
        array: Array<T>,
        shape: &'a [u64],
        order: Order,
    ) -> Self {
        Self {
            name,
            dtype: T::DTYPE,
            shape,
            order,
            offset: array.offset(),
            unit: "",
            axes: "",
            role: Role::Data,
        }
    }

    /// The first element of an array as a scalar.
    #[must_use]
    pub const fn scalar<T: Element>(name: &'a str, array: Array<T>) -> Self {
        Self::array(name, array, &[], Order::C)
    }

    /// The same with a unit.
    #[must_use]
    pub const fn unit(self, unit: &'a str) -> Self {
        Self { unit, ..self }
    }

    /// The same with axis labels.
    #[must_use]
    pub const fn axes(self, axes: &'a str) -> Self {
        Self { axes, ..self }
    }

    /// The same with a role.
    #[must_use]
    pub const fn role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// The table entry, checked against an arena of `arena_bytes`.
    ///
    /// # Errors
    /// ENAMETOOLONG for a name, unit or label that does not fit its field;
    /// EINVAL for an empty name, control characters, more than 8 dimensions
    /// or a dimension of 0; EOVERFLOW when the size does not fit 64 bits;
    /// EFAULT when the variable is not inside the arena.
    pub fn pack(&self, arena_bytes: u64) -> Result<VarDesc, Errno> {
        if self.name.is_empty() {
            return Err(Errno::EINVAL);
        }
        let (shape, strides, nbytes) = self.layout()?;
        let (dtype_code, dtype_bits) = self.dtype.code_and_bits();
        let desc = VarDesc {
            name: field(self.name)?,
            dtype_code,
            dtype_bits,
            dtype_lanes: 1,
            ndim: u32::try_from(self.shape.len()).map_err(|_| Errno::EINVAL)?,
            shape,
            strides,
            offset: self.offset,
            nbytes,
            order: match self.order {
                Order::C => b'C',
                Order::Fortran => b'F',
            },
            role: self.role as u8,
            pad: [0; 6],
            unit: field(self.unit)?,
            axis_labels: field(self.axes)?,
            reserved: [0; 136],
        };
        match desc.check(arena_bytes) {
            Ok(()) => Ok(desc),
            Err(VarError::Bounds) => Err(Errno::EFAULT),
            Err(_) => Err(Errno::EINVAL),
        }
    }

    /// Shape and strides as the table has them, and the bytes covered.
    fn layout(&self) -> Result<([u64; MAX_NDIM], [i64; MAX_NDIM], u64), Errno> {
        let mut shape = [0; MAX_NDIM];
        let mut strides = [0; MAX_NDIM];
        let ndim = self.shape.len();
        let kept = shape.get_mut(..ndim).ok_or(Errno::EINVAL)?;
        kept.copy_from_slice(self.shape);
        let mut stride = self.dtype.bytes();
        for step in 0..ndim {
            let axis = match self.order {
                Order::C => ndim - 1 - step,
                Order::Fortran => step,
            };
            strides[axis] = i64::try_from(stride).map_err(|_| Errno::EOVERFLOW)?;
            stride = stride.checked_mul(shape[axis]).ok_or(Errno::EOVERFLOW)?;
        }
        Ok((shape, strides, stride))
    }
}

/// `text` in a zero-padded field of `N` bytes, at least one of them zero.
pub(crate) fn field<const N: usize>(text: &str) -> Result<[u8; N], Errno> {
    if text.chars().any(char::is_control) {
        return Err(Errno::EINVAL);
    }
    let mut field = [0; N];
    match field.get_mut(..text.len()) {
        Some(kept) if text.len() < N => kept.copy_from_slice(text.as_bytes()),
        _ => return Err(Errno::ENAMETOOLONG),
    }
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flux(shape: &[u64], order: Order) -> Var<'_> {
        Var::array("flux", Array::<f64>::at(4096, 0), shape, order)
    }

    #[test]
    fn strides_follow_the_order() {
        let c = flux(&[2, 3, 4], Order::C).pack(8192).unwrap();
        assert_eq!(c.strides[..4], [96, 32, 8, 0]);
        assert_eq!(c.order, b'C');
        let f = flux(&[2, 3, 4], Order::Fortran).pack(8192).unwrap();
        assert_eq!(f.strides[..4], [8, 16, 48, 0]);
        assert_eq!(f.order, b'F');
        for desc in [c, f] {
            assert_eq!((desc.ndim, desc.nbytes, desc.offset), (3, 192, 4096));
            assert_eq!((desc.dtype_code, desc.dtype_bits), (dtype::FLOAT, 64));
            assert_eq!(desc.name(), Some("flux"));
            assert_eq!(desc.check(4096 + 192), Ok(()));
        }
    }

    #[test]
    fn a_scalar_has_no_dimension_and_one_element() {
        let step = Array::<u64>::at(8, 1);
        let desc = Var::scalar("step", step).unit("1").pack(16).unwrap();
        assert_eq!((desc.ndim, desc.nbytes), (0, 8));
        assert_eq!((desc.dtype_code, desc.dtype_bits), (dtype::UINT, 64));
        assert_eq!(&desc.unit[..2], b"1\0");
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_here() {
        let refused = |var: Var<'_>| var.pack(8192).unwrap_err();
        let long = "x".repeat(120);
        let good = flux(&[512], Order::C);
        assert!(good.pack(8192).is_ok());
        assert_eq!(refused(flux(&[513], Order::C)), Errno::EFAULT);
        assert_eq!(refused(flux(&[4, 0], Order::C)), Errno::EINVAL);
        assert_eq!(refused(flux(&[1; 9], Order::C)), Errno::EINVAL);
        assert_eq!(refused(flux(&[u64::MAX, 2], Order::C)), Errno::EOVERFLOW);
        assert_eq!(refused(Var { name: "", ..good }), Errno::EINVAL);
        assert_eq!(
            refused(Var {
                name: "a\nb",
                ..good
            }),
            Errno::EINVAL
        );
        assert_eq!(
            refused(Var {
                name: &long,
                ..good
            }),
            Errno::ENAMETOOLONG
        );
        assert_eq!(refused(good.unit(&long)), Errno::ENAMETOOLONG);
        assert_eq!(refused(good.axes(&long)), Errno::ENAMETOOLONG);
        assert_eq!(
            refused(Var {
                offset: u64::MAX,
                ..good
            }),
            Errno::EFAULT
        );
    }

    #[test]
    fn numbers_from_c_become_types_or_stay_numbers() {
        for number in 1..=12 {
            assert_eq!(Dtype::try_from(number).map(|d| d as u32), Ok(number));
        }
        assert_eq!(Dtype::try_from(0), Err(0));
        assert_eq!(Dtype::try_from(13), Err(13));
        assert_eq!(Order::try_from(b'f'), Ok(Order::Fortran));
        assert_eq!(Order::try_from(b'X'), Err(b'X'));
        assert_eq!(Role::try_from(4), Err(4));
    }
}
