//! Pages by key: what comes after the last item seen, however much is inserted meanwhile.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ServiceError;

/// Items of a page that names no size.
pub const DEFAULT_SIZE: u32 = 50;

/// Most items of a page.
pub const MAX_SIZE: u32 = 500;

/// Longest cursor that is read, in bytes.
const MAX_CURSOR: usize = 1_024;

/// Which page.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PageRequest {
    /// Items at most.
    pub size: Option<u32>,
    /// Cursor of the page before.
    pub after: Option<String>,
}

/// A page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page<T> {
    /// Its items.
    pub items: Vec<T>,
    /// Cursor of the next page; absent on the last.
    pub next: Option<String>,
}

impl PageRequest {
    /// Returns the size.
    ///
    /// # Errors
    ///
    /// It is 0 or above [`MAX_SIZE`].
    pub fn limit(&self) -> Result<u32, ServiceError> {
        match self.size.unwrap_or(DEFAULT_SIZE) {
            size @ 1..=MAX_SIZE => Ok(size),
            _ => Err(ServiceError::invalid(
                "size",
                format!("must be between 1 and {MAX_SIZE}"),
            )),
        }
    }

    /// Returns the key after which the page begins.
    ///
    /// # Errors
    ///
    /// The cursor is not one that this list gave out.
    pub fn key<K: DeserializeOwned>(&self) -> Result<Option<K>, ServiceError> {
        let Some(cursor) = self.after.as_deref().filter(|cursor| !cursor.is_empty()) else {
            return Ok(None);
        };
        let refuse = || ServiceError::invalid("after", "is not a cursor of this list");
        if cursor.len() > MAX_CURSOR {
            return Err(refuse());
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| refuse())?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| refuse())
    }
}

impl<T> Page<T> {
    /// Makes a page of items of which one more than `limit` was asked for.
    #[must_use]
    pub fn new<K: Serialize>(mut items: Vec<T>, limit: u32, key: impl Fn(&T) -> K) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items
            .last()
            .filter(|_| more)
            .and_then(|last| serde_json::to_vec(&key(last)).ok())
            .map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        Self { items, next }
    }

    /// Makes the last page.
    #[must_use]
    pub const fn last(items: Vec<T>) -> Self {
        Self { items, next: None }
    }

    /// Turns the items into others.
    #[must_use]
    pub fn map<U>(self, turn: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(turn).collect(),
            next: self.next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_knows_whether_there_is_more() {
        let page = Page::new(vec![1, 2, 3], 2, |item| *item);
        assert_eq!(page.items, [1, 2]);
        let next = PageRequest {
            size: None,
            after: page.next,
        };
        assert_eq!(next.key::<i64>().unwrap(), Some(2));
        assert_eq!(Page::new(vec![1, 2], 2, |item| *item).next, None);
    }

    #[test]
    fn foreign_cursors_and_sizes_are_refused() {
        let request = |size, after: &str| PageRequest {
            size,
            after: Some(after.into()),
        };
        for cursor in ["x", "!!!!", "bm90IGpzb24", &"A".repeat(2_000)] {
            assert!(request(None, cursor).key::<i64>().is_err(), "{cursor}");
        }
        assert!(request(Some(0), "").limit().is_err());
        assert!(request(Some(501), "").limit().is_err());
    }
}
