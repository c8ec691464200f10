//! Names of users from elsewhere, as they can be here.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::Arrival;
use crate::service::ServiceError;
use crate::store::{Tx, users};

/// Most bytes of a name.
const MAX_NAME: usize = 64;

/// Most bytes of a note.
const MAX_NOTE: usize = 2_000;

/// Most users whose names become one and the same; more are passed over.
const MAX_ALIKE: usize = 1_000;

/// Returns a name with `-` for each letter that is not allowed.
pub(super) fn spelt(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
    let letters = name.trim().chars();
    letters
        .map(|c| if allowed(c) { c } else { '-' })
        .take(MAX_NAME)
        .collect()
}

/// Returns a name as a note has it.
pub(super) fn as_note(name: &str) -> String {
    let mut note = name.trim().replace('\0', "");
    note.truncate(note.floor_char_boundary(MAX_NOTE));
    note
}

/// Who has a name.
enum Holder {
    /// A row of this import, by its own name.
    Row(String),
    /// A user that was there, with this note.
    Stored(String),
}

/// The names that are taken, as far as somebody asked for them.
#[derive(Default)]
pub(super) struct Names(HashMap<String, Holder>);

impl Names {
    /// Takes a free name for a user: its own, or, where that is the changed name of somebody else, one with a number
    /// behind it. `None` if the user is there already.
    ///
    /// # Errors
    ///
    /// The store fails.
    pub(super) async fn take(
        &mut self,
        tx: &mut Tx,
        one: &Arrival,
    ) -> Result<Option<String>, ServiceError> {
        for number in 1..=MAX_ALIKE {
            let name = numbered(&one.user.username, number);
            if !self.0.contains_key(&name)
                && let Some(note) = users::note_of(tx, &name).await?
            {
                self.0.insert(name.clone(), Holder::Stored(note));
            }
            if let ControlFlow::Break(free) = self.settle(name, one) {
                return Ok(free);
            }
        }
        Ok(None)
    }

    /// Like [`Names::take`], with the names and notes of all users that are there in place of a store.
    #[cfg(feature = "fuzzing")]
    pub(super) fn take_beside(
        &mut self,
        there: &HashMap<String, String>,
        one: &Arrival,
    ) -> Option<String> {
        let settled = (1..=MAX_ALIKE).find_map(|number| {
            let name = numbered(&one.user.username, number);
            if !self.0.contains_key(&name)
                && let Some(note) = there.get(&name)
            {
                self.0.insert(name.clone(), Holder::Stored(note.clone()));
            }
            self.settle(name, one).break_value()
        });
        settled.flatten()
    }

    /// Takes this name for a user if it is free, or finds that the user has it already. It goes on where somebody else
    /// has it.
    fn settle(&mut self, name: String, one: &Arrival) -> ControlFlow<Option<String>> {
        let own = one.name.trim();
        let is_same = match self.0.get(&name) {
            None => {
                self.0.insert(name.clone(), Holder::Row(own.to_owned()));
                return ControlFlow::Break(Some(name));
            }
            Some(Holder::Row(other)) => other == own,
            // An import before this one, or somebody by hand, made it.
            Some(Holder::Stored(note)) => {
                !one.is_renamed() || *note == one.user.note || *note == as_note(own)
            }
        };
        if !is_same {
            return ControlFlow::Continue(());
        }
        // The next row of that name is the same user, whatever its note says.
        if one.is_renamed() {
            self.0.insert(name, Holder::Row(own.to_owned()));
        }
        ControlFlow::Break(None)
    }
}

/// Returns a name with a number behind it but for the first, within the length of names.
fn numbered(name: &str, number: usize) -> String {
    if number == 1 {
        return name.to_owned();
    }
    let number = format!("-{number}");
    // A name is ASCII by now.
    let kept = name.len().min(MAX_NAME - number.len());
    format!("{}{number}", name.get(..kept).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::users::{CreateUser, Past};

    fn arrival(name: &str, note: &str) -> Arrival {
        Arrival {
            at: 0,
            name: name.to_owned(),
            user: CreateUser {
                username: spelt(name),
                note: note.to_owned(),
                ..CreateUser::default()
            },
            past: Past::default(),
        }
    }

    #[test]
    fn a_name_that_stands_twice_in_an_export_is_one_user_each_time() {
        // The second row has another note, which says nothing about who it is.
        let rows = [arrival("ann/1", "a"), arrival("ann/1", "b")];
        for there in [None, Some("a")] {
            let mut names = Names::default();
            if let Some(note) = there {
                let holder = Holder::Stored(note.to_owned());
                names.0.insert("ann-1".to_owned(), holder);
            }
            let taken = rows
                .each_ref()
                .map(|one| names.settle("ann-1".to_owned(), one));
            let first = there.is_none().then(|| "ann-1".to_owned());
            assert_eq!(
                taken,
                [ControlFlow::Break(first), ControlFlow::Break(None)],
                "{there:?}"
            );
        }
        // Of a user who is here by that very name, another's note may be the same.
        let mut names = Names::default();
        let holder = Holder::Stored("a".to_owned());
        names.0.insert("ann-1".to_owned(), holder);
        for one in [arrival("ann-1", "x"), arrival("ann/1", "a")] {
            let taken = names.settle("ann-1".to_owned(), &one);
            assert_eq!(taken, ControlFlow::Break(None));
        }
    }

    #[test]
    fn names_are_spelt_and_numbered_within_their_length() {
        assert_eq!(spelt(" \u{646}\u{627}\u{645} "), "---");
        assert_eq!(spelt("ann/1"), "ann-1");
        let long = "a".repeat(70);
        assert_eq!(numbered(&spelt(&long), 1).len(), 64);
        let numbered = numbered(&spelt(&long), 17);
        assert_eq!((numbered.len(), &numbered[60..]), (64, "a-17"));
        assert_eq!(as_note(&"\u{646}".repeat(1_500)).len(), 2_000);
    }
}
