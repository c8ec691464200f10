//! The spool of an agent: cuts, journeys, acknowledgements, lost acknowledgements, a master or a
//! disk from the past, restarts, and files of any name and content. Every byte that was cut reaches
//! the master once, unless its own file was spoilt.
//!
//! Planted bug: after a restart, numbers began at the newest batch, not behind it.

use std::{collections::BTreeMap, fs, path::PathBuf};

use arbitrary::Unstructured;
use hy2_agent_sdk::fuzzing::spool::{Batches, batch, file};
use hy2_proto::control::rpc::{TrafficBatch, UserTraffic};
use prost::Message;

use crate::{folder::Folder, read, take};

/// Runs a program.
pub fn target(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut world = World::new(&mut input);
    for _ in 0..60 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.end();
}

struct World {
    folder: Folder,
    cap: u64,
    spool: Batches,
    master: Master,
    /// Bytes that were cut, by user.
    cut: BTreeMap<u64, u64>,
    /// Somebody wrote into the folder: what arrives may be more or less than what was cut.
    spoilt: bool,
}

/// The store of a master: takes the next batch only.
#[derive(Default, Clone)]
struct Master {
    cursors: BTreeMap<Vec<u8>, u64>,
    bytes: BTreeMap<u64, u64>,
}

impl World {
    fn new(input: &mut Unstructured<'_>) -> Self {
        let folder = Folder::new();
        let cap = u64::from(read::<u8>(input)) * 16;
        Self {
            spool: Batches::open(folder.path(), cap).expect("a new spool"),
            folder,
            cap,
            master: Master::default(),
            cut: BTreeMap::new(),
            spoilt: false,
        }
    }

    fn step(&mut self, input: &mut Unstructured<'_>) {
        match read::<u8>(input) % 12 {
            0..=4 => {
                let mut rows = BTreeMap::new();
                for _ in 0..=read::<u8>(input) % 4 {
                    rows.insert(u64::from(read::<u8>(input) % 8), u64::from(read::<u16>(input)));
                }
                for (user, bytes) in &rows {
                    *self.cut.entry(*user).or_default() += bytes;
                }
                let row = |(user_id, tx)| UserTraffic {
                    user_id,
                    tx,
                    ..UserTraffic::default()
                };
                let rows = rows.into_iter().map(row).collect();
                self.spool.append(rows).expect("the disk has room");
            }
            5 | 6 => self.journey(true),
            // The answer is lost.
            7 => self.journey(false),
            8 => self.reopen(),
            // A cursor that anybody may claim; never one behind which batches were forgotten.
            9 => {
                let cursor = match read::<u8>(input) % 4 {
                    0 => u64::MAX - u64::from(read::<u8>(input) % 2),
                    1 => self.spool.durable(),
                    _ => u64::from(read::<u8>(input) % 16),
                };
                // The master's truth is its own: a claim beyond what is there makes another spool,
                // whose content it then takes again.
                self.spoilt = true;
                if read::<u8>(input) % 2 == 0 {
                    let _ = self.spool.rewind(cursor);
                } else {
                    let _ = self.spool.resync(cursor);
                }
            }
            // A file out of the blue.
            10 => {
                self.spoilt = true;
                let path = self.current().join(name(input));
                let len = usize::from(read::<u8>(input));
                let content = take(input, len);
                let content = if read::<u8>(input) % 2 == 0 {
                    file(content)
                } else {
                    content.to_vec()
                };
                let _ = fs::write(path, content);
                self.reopen();
            }
            // A file that is cut short or gone.
            _ => {
                self.spoilt = true;
                let mut files: Vec<_> = fs::read_dir(self.current())
                    .expect("a folder")
                    .flatten()
                    .map(|entry| entry.path())
                    .collect();
                files.sort();
                let at = usize::from(read::<u8>(input));
                if let Some(path) = files.get(at % files.len().max(1)) {
                    match read::<u8>(input) {
                        0 => fs::remove_file(path).expect("it is there"),
                        len => {
                            let whole = fs::read(path).expect("it is there");
                            let short = &whole[..usize::from(len).min(whole.len())];
                            fs::write(path, short).expect("room");
                        }
                    }
                }
                self.reopen();
            }
        }
        let _ = self.spool.waiting();
    }

    fn current(&self) -> PathBuf {
        let id: String = self.spool.id().iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.path().join(id)
    }

    fn reopen(&mut self) {
        let (id, durable) = (self.spool.id(), self.spool.durable());
        self.spool = Batches::open(self.folder.path(), self.cap).expect("nothing is too damaged");
        assert_eq!(self.spool.id(), id);
        let contents = self.spool.contents().expect("what was opened is readable");
        if !self.spoilt {
            assert!(contents.is_sorted_by(|one, two| one.last_seq < two.first_seq));
        }
        // The session with the master begins anew.
        let cursor = self.master.cursors.get(&id[..]).copied().unwrap_or(0);
        assert!(self.spoilt || durable <= cursor);
        self.resync(cursor);
    }

    fn resync(&mut self, cursor: u64) {
        let lost = self.spool.resync(cursor).expect("what was opened is readable");
        assert!(self.spoilt || lost.is_none(), "{lost:?} lost");
    }

    /// The next batch goes to the master, whose answer arrives or not.
    fn journey(&mut self, answered: bool) {
        let Ok(next) = self.spool.next() else {
            assert!(self.spoilt);
            return;
        };
        let Some(encoded) = next else { return };
        let batch = TrafficBatch::decode(&encoded[..]).expect("a batch");
        let cursor = self.master.cursors.entry(batch.spool_id.to_vec()).or_default();
        if batch.first_seq == cursor.wrapping_add(1) {
            *cursor = batch.last_seq;
            for row in &batch.users {
                let bytes = self.master.bytes.entry(row.user_id).or_default();
                *bytes = bytes.saturating_add(row.tx);
            }
        } else {
            assert!(self.spoilt || batch.last_seq <= *cursor, "a gap");
        }
        let cursor = *cursor;
        if answered {
            self.spool.acknowledged(cursor);
        }
    }

    /// Everything that is left is sent.
    fn end(mut self) {
        if self.spoilt {
            self.reopen();
            self.journey(true);
            return;
        }
        for _ in 0..200 {
            self.journey(true);
        }
        self.cut.retain(|_, bytes| *bytes > 0);
        self.master.bytes.retain(|_, bytes| *bytes > 0);
        assert_eq!(self.master.bytes, self.cut);
        assert_eq!(self.spool.waiting(), (0, 0));
        for entry in fs::read_dir(self.current()).expect("a folder").flatten() {
            let content = fs::read(entry.path()).expect("readable");
            assert!(batch(&content).is_some(), "{:?}", entry.path());
        }
    }
}

/// A name that a batch could have, or nearly.
fn name(input: &mut Unstructured<'_>) -> String {
    let number = |input: &mut Unstructured<'_>| match read::<u8>(input) {
        255 => u64::MAX,
        small => u64::from(small % 16),
    };
    let (first, last) = (number(input), number(input));
    let kind = ["batch", "sent", "tmp", "damaged"][usize::from(read::<u8>(input) % 4)];
    match read::<u8>(input) % 4 {
        0 => format!("{first}-{last}.{kind}"),
        1 => format!("-.{kind}"),
        _ => format!("{first:020}-{last:020}.{kind}"),
    }
}
