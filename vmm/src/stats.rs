//! KVM's binary statistics of a vCPU: exact counts, free of noise.
//!
//! Called by the machine for `inspect` and by the benchmarks. Format: Linux
//! KVM API documentation §4.133 (KVM_GET_STATS_FD). The descriptor must be
//! opened before the vCPU first runs, because the ioctl takes the vCPU's lock.

// UNSAFETY: one ioctl that kvm-ioctls does not wrap.
#![expect(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;
/// Bytes of the header: six 32-bit fields.
const HEADER_BYTES: usize = 24;
/// Bytes of a descriptor before its name.
const DESC_BYTES: usize = 16;
/// More descriptors than any kernel has; bounds what we read.
const MAX_DESCS: usize = 1024;

/// An open statistics file and where each counter is in it.
#[derive(Debug)]
pub struct KvmStats {
    file: File,
    offsets: BTreeMap<String, u64>,
}

impl KvmStats {
    /// Opens the statistics of a vCPU (or VM) descriptor.
    ///
    /// # Errors
    /// The system's error; kernels before 5.14 have no such file.
    pub fn open(kvm_object: &impl AsRawFd) -> std::io::Result<Self> {
        // SAFETY: KVM_GET_STATS_FD takes no argument and returns a new
        // descriptor or -1; it touches no memory of ours.
        let fd = unsafe { libc::ioctl(kvm_object.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned to us and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let offsets = read_offsets(&file)?;
        Ok(Self { file, offsets })
    }

    /// One counter; 0 when this kernel does not have it.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.offsets
            .get(name)
            .map_or(0, |&offset| read_u64(&self.file, offset).unwrap_or(0))
    }

    /// All single-valued counters by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, u64> {
        self.offsets
            .keys()
            .map(|name| (name.clone(), self.get(name)))
            .collect()
    }
}

fn field(bytes: &[u8], index: usize) -> u64 {
    bytes
        .get(index * 4..index * 4 + 4)
        .and_then(|four| four.try_into().ok())
        .map_or(0, |four| u64::from(u32::from_le_bytes(four)))
}

fn read_u64(file: &File, offset: u64) -> std::io::Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, offset)?;
    Ok(u64::from_le_bytes(word))
}

/// Reads header and descriptors; counters with more than one value (histograms)
/// are left out.
fn read_offsets(file: &File) -> std::io::Result<BTreeMap<String, u64>> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let name_bytes = usize::try_from(field(&header, 1)).unwrap_or(0).min(256);
    let count = usize::try_from(field(&header, 2))
        .unwrap_or(0)
        .min(MAX_DESCS);
    let (desc_at, data_at) = (field(&header, 4), field(&header, 5));
    let mut offsets = BTreeMap::new();
    let desc_bytes = DESC_BYTES + name_bytes;
    let mut desc = vec![0; desc_bytes];
    for index in 0..count {
        file.read_exact_at(&mut desc, desc_at + (index * desc_bytes) as u64)?;
        let values = desc
            .get(6..8)
            .map_or(0, |two| u16::from_le_bytes([two[0], two[1]]));
        let name = desc.get(DESC_BYTES..).unwrap_or_default();
        let end = name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(name.len());
        let name = String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned();
        if values == 1 && !name.is_empty() {
            offsets.insert(name, data_at + field(&desc, 2));
        }
    }
    Ok(offsets)
}
