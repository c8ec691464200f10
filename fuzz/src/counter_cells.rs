//! Counters of an agent in their files: whatever a file holds, it is read or set aside, and what is counted from then on is
//! there after each restart.
//!
//! Planted bug: after a restart the last user's cell was given to the next one.

use std::{collections::BTreeMap, fs};

use arbitrary::Unstructured;
use hy2_agent_sdk::fuzzing::spool::Counters;

use crate::{folder::Folder, read, take};

/// Takes what the file holds, and a program.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let folder = Folder::new();
    let mut expected = content(&mut input, &folder);
    let open = || Counters::open(folder.path()).expect("a damaged file is set aside");
    let mut counters = open();
    check(&counters, &expected);
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        let user = 1 + u64::from(read::<u8>(&mut input) % 8);
        let (tx, rx) = (u64::from(read::<u16>(&mut input)), read::<u64>(&mut input));
        match read::<u8>(&mut input) % 4 {
            0 => {
                counters.count(user, tx, rx).expect("room");
                let [to, from, ..] = expected.entry(user).or_default();
                *to = to.wrapping_add(tx);
                *from = from.wrapping_add(rx);
            }
            1 => {
                counters.set_spooled(user, tx, rx).expect("room");
                let figures = expected.entry(user).or_default();
                (figures[2], figures[3]) = (tx, rx);
            }
            2 => {
                counters.raise(user, tx, rx).expect("room");
                let figures = expected.entry(user).or_default();
                for (figure, least) in figures.iter_mut().zip([tx, rx, tx, rx]) {
                    *figure = least.max(*figure);
                }
            }
            _ => counters = open(),
        }
        check(&counters, &expected);
    }
    drop(counters);
    check(&open(), &expected);
}

type Figures = BTreeMap<u64, [u64; 4]>;

/// Writes the first file, and returns what it says.
fn content(input: &mut Unstructured<'_>, folder: &Folder) -> Figures {
    let mut expected = Figures::new();
    let kind = read::<u8>(input);
    if kind % 4 == 0 {
        return expected;
    }
    let mut file = vec![0; Counters::FILE];
    file[..8].copy_from_slice(b"hy2cell1");
    // Cells anywhere, the last one too, so that there has to be another file.
    for _ in 0..kind >> 4 {
        let at = match read::<u16>(input) % 8192 {
            8000.. => 8191,
            at => 1 + usize::from(at % 64),
        };
        let cell = take(input, 64);
        file[at * 64..at * 64 + cell.len()].copy_from_slice(cell);
    }
    match kind % 4 {
        1 => {
            for cell in file.chunks(64).skip(1) {
                let mut words = cell
                    .chunks(8)
                    .map(|word| u64::from_ne_bytes(word.try_into().expect("eight")));
                let mut next = || words.next().expect("a word");
                let user = next();
                if user != 0 {
                    // Who stands there twice has the later cell.
                    expected.insert(user, [next(), next(), next(), next()]);
                }
            }
        }
        // Of another kind, or cut off.
        2 => file[usize::from(kind >> 2 & 3)] ^= 1,
        _ => file.truncate(usize::from(read::<u16>(input)) * 7),
    }
    fs::write(folder.path().join("cells-0000"), file).expect("room");
    expected
}

fn check(counters: &Counters, expected: &Figures) {
    let all = counters.all();
    let found: Figures = all.iter().copied().collect();
    assert_eq!(found.len(), all.len(), "twice");
    assert_eq!(found, *expected);
    let sum = |at: usize| {
        let figures = expected.values().map(|figures| figures[at]);
        figures.fold(0, u64::wrapping_add)
    };
    assert_eq!(counters.totals(), (sum(0), sum(1)));
}
