//! The file of profiles, for the fuzz targets.

use crate::profile::{parse, to_text};

/// Reads a file of profiles and returns it as it would be written; says what is wrong with it.
///
/// # Errors
///
/// In one line.
pub fn profiles(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let entries = parse(bytes).map_err(|error| error.to_string())?;
    to_text(&entries).map_err(|error| error.to_string())
}

/// Returns what a log may show of the profiles of a file.
///
/// # Errors
///
/// As [`profiles`].
pub fn printed(bytes: &[u8]) -> Result<String, String> {
    let entries = parse(bytes).map_err(|error| error.to_string())?;
    Ok(format!("{entries:?}"))
}
