//! A file that is whole or not there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A new file for its owner only. It gets its name when it is whole; dropped before, it is gone.
#[derive(Debug)]
pub struct NewFile {
    file: fs::File,
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// Begins a file beside its later name.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken; or it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt;
            options.mode(0o600);
        }
        Ok(Self {
            file: options.open(&temporary)?,
            path: path.to_owned(),
            temporary: Some(temporary),
        })
    }

    /// Returns what to write to.
    pub const fn file(&mut self) -> &mut fs::File {
        &mut self.file
    }

    /// Brings it to the disk and gives it its name. Replaces nothing.
    ///
    /// # Errors
    ///
    /// The name was taken meanwhile, or the system fails; there is no file then.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if let Some(temporary) = &self.temporary {
            match fs::hard_link(temporary, &self.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // A file system without links.
                Err(_) => {
                    fs::rename(temporary, &self.path)?;
                    self.temporary = None;
                }
            }
        }
        let folder = self.path.parent().filter(|at| !at.as_os_str().is_empty());
        #[cfg(unix)]
        fs::File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        #[cfg(not(unix))]
        let _ = folder;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a");
        let names = || fs::read_dir(folder.path()).expect("folder").count();
        let mut dropped = NewFile::create(&path).expect("made");
        dropped.file().write_all(b"half").expect("written");
        drop(dropped);
        assert_eq!(names(), 0);
        let mut kept = NewFile::create(&path).expect("made");
        kept.file().write_all(b"whole").expect("written");
        kept.keep().expect("kept");
        assert_eq!(
            (fs::read(&path).expect("there"), names()),
            (b"whole".to_vec(), 1)
        );
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let taken = NewFile::create(&path).expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn nothing_is_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a");
        let late = NewFile::create(&path).expect("made");
        fs::write(&path, "first").expect("written");
        assert!(late.keep().is_err());
        assert_eq!(fs::read(&path).expect("there"), b"first");
    }
}
