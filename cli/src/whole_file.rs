//! A file that appears when it is complete, or not at all.
//!
//! Used by verbs with `--output`. It is written under another name beside its
//! place and renamed when finished; dropped before, it is removed. What is
//! there already and is no regular file (a device, a pipe) is written to
//! directly: it must not be replaced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use enclave_vmm::failure::Failure;

/// The file on its way.
#[derive(Debug)]
pub(crate) struct WholeFile {
    path: PathBuf,
    /// The name it has while it is being written; none once it is complete.
    partial: Option<PathBuf>,
    file: File,
}

impl WholeFile {
    /// Opens it for writing.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let is_replaced = fs::metadata(path).map_or(true, |meta| meta.is_file());
        let partial = is_replaced.then(|| partial_path(path));
        let opened = match &partial {
            Some(partial) => File::create(partial),
            None => File::options().write(true).open(path),
        };
        let file = opened.map_err(|error| {
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            let folder = folder.unwrap_or(Path::new("."));
            failed(path, error).with_hint(format!("ls -ld {}", folder.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            file,
        })
    }

    /// Puts it in its place.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if let Some(partial) = self.partial.take() {
            fs::rename(&partial, &self.path).map_err(|error| {
                // Half a file is of no use to anybody, nor is a hidden one.
                let _ = fs::remove_file(&partial);
                failed(&self.path, error)
            })?;
        }
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // Half a file is of no use to anybody.
            let _ = fs::remove_file(partial);
        }
    }
}

fn failed(path: &Path, error: std::io::Error) -> Failure {
    Failure::io(format!("write {}", path.display()), error)
}

fn partial_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    /// A directory of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("enclavectl-file-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap().flatten();
            entries
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn a_file_is_replaced_when_its_successor_is_complete() {
        let folder = Folder::new("whole");
        let path = folder.0.join("f");
        fs::write(&path, "old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(folder.names(), ["f"]);
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(folder.names(), ["f"]);
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays() {
        let folder = Folder::new("socket");
        let path = folder.0.join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // A socket cannot be opened; it must not be replaced for that.
        assert!(WholeFile::create(&path).is_err());
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        // A link to a device, as /dev/stdout is.
        let link = folder.0.join("l");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let mut file = WholeFile::create(&link).unwrap();
        file.write_all(b"x").unwrap();
        file.finish().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(folder.names().len(), 2);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let failure = WholeFile::create(Path::new("/nonexistent/f")).unwrap_err();
        assert!(failure.hint.contains("/nonexistent"), "{failure:?}");
    }
}
