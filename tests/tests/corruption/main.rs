//! Stored bytes that are not what was written: refused with the place named, or an
//! incomplete last record dropped. Never another database, never a panic.
//!
//! The sweeps over every byte and bit call the library that `backup-cli` restores with; a sample
//! goes through `backup-cli` itself.

mod bits;
mod memory;
mod sample;
mod secret;
mod sweep;

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use fastrand::Rng;
use lockstep_proto::error::Class;
use lockstep_proto::log::{LogEnd, generations, segments};
use lockstep_proto::record::{Head, Open, Record};
use lockstep_proto::seal::{
    FRAME_OVERHEAD, HEADER_LEN, Header, KeyRing, ObjectKind, PREFIX_LEN, Sealer,
};
use lockstep_proto::slots::{self, Unlock};
use lockstep_proto::{layout, verify};
use lockstep_tests::backed::{Backed, ci_or_long, files_under, reason_not_to_go_on};
use lockstep_tests::binaries::Cli;
use lockstep_tests::sim::{Answer, Node};
use lockstep_tests::testdir::copy_dir;
use lockstep_tests::{Batch, Step, oracle};
use sha2::{Digest, Sha256};

use crate::memory::Memory;
use crate::sample::{Sample, content, frames, insert};
use crate::secret::lockstep_node_secret;
use crate::sweep::{Verdict, exit_code, locate, log_objects, read_by_restore, refused, sweep};

const TAG: usize = 16;
const END_MARK: usize = FRAME_OVERHEAD - PREFIX_LEN - TAG;
const SECTOR: usize = 512;

#[test]
fn no_changed_byte_gives_another_database() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let objects = read_by_restore(&sample);
        let bytes: usize = objects.iter().map(|(_, len)| len).sum();
        let masks: &[u8] = ci_or_long(&[0x01], &[0x01, 0x02, 0x10, 0x55, 0x80, 0xff]);
        let began = Instant::now();
        let tally = sweep(bytes * masks.len(), |number| {
            let (name, at) = locate(&objects, number / masks.len());
            let mask = masks[number % masks.len()];
            let mut changed = sample.store.0[name].to_vec();
            changed[at] ^= mask;
            match content(&sample.store.with(name, changed), &sample.keys) {
                Ok(content) if content == sample.full => Ok(Verdict::Full),
                Ok(_) => Err(format!("{name} at byte {at} ^ {mask:#x}: another database")),
                Err(error) => refused(&error, name).map_err(|w| format!("{name} at {at}: {w}")),
            }
        });
        println!(
            "{bytes} bytes of {} objects, {} changes each, {:.0} s: {tally:?}",
            objects.len(),
            masks.len(),
            began.elapsed().as_secs_f64()
        );
    }
}

#[test]
fn what_restore_does_not_read_does_not_hinder_it() {
    let sample = Sample::make(true);
    let read = read_by_restore(&sample);
    let others = sample.store.0.keys().filter(|name| read.iter().all(|(read, _)| read != *name));
    let mut tried = 0;
    for name in others {
        let bytes = &sample.store.0[name];
        for at in (0..bytes.len()).step_by(97) {
            tried += 1;
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x20;
            let found = content(&sample.store.with(name, changed), &sample.keys);
            let found = found.unwrap_or_else(|error| panic!("{name} at byte {at}: {error}"));
            assert!(found == sample.full, "{name} at byte {at}: another database");
        }
    }
    assert!(tried > 30);
}

#[test]
fn verify_finds_every_changed_byte_that_matters_also_in_older_generations() {
    let sample = Sample::make(true);
    let intact = verify::run(&sample.store, &sample.keys, &mut |_| {}).unwrap();
    assert_eq!(intact.len(), 2);
    let objects = log_objects(&sample);
    let bytes: usize = objects.iter().map(|(_, len)| len).sum();
    let stride = ci_or_long(3, 1);
    let tally = sweep(bytes / stride, |number| {
        let (name, at) = locate(&objects, number * stride);
        let mut changed = sample.store.0[name].to_vec();
        changed[at] ^= 0x40;
        match verify::run(&sample.store.with(name, changed), &sample.keys, &mut |_| {}) {
            Ok(reports) if reports == intact => Ok(Verdict::Full),
            Ok(reports) => Err(format!("{name} at byte {at}: {reports:?}")),
            Err(error) => refused(&error, name).map_err(|wrong| format!("{name} at {at}: {wrong}")),
        }
    });
    println!("verify, every {stride} bytes: {tally:?}");
    // What makes no difference: zeros behind the end, and a record that is void.
    assert!(tally[&Verdict::Refused(13)] > 9 * tally[&Verdict::Full], "{tally:?}");
}

#[test]
fn a_changed_byte_of_a_key_slot_opens_nothing_else() {
    let sample = Sample::make(false);
    let name = "keys/node.age";
    let secret = lockstep_node_secret(&[1; 32]);
    let bytes = &sample.store.0[name];
    let len = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let tally = sweep(2 * len, |number| {
        let mut changed = bytes[..len].to_vec();
        changed[number / 2] ^= [0x01, 0x80][number % 2];
        let unlock = Unlock::Node(secret.into());
        match slots::open(&sample.store.with(name, changed), &unlock) {
            Ok((keys, _)) if *keys.encode().unwrap() == *sample.keys.encode().unwrap() => {
                Ok(Verdict::Full)
            }
            Ok(_) => Err(format!("byte {}: another key ring", number / 2)),
            Err(error) => refused(&error, "slot").map_err(|wrong| format!("{number}: {wrong}")),
        }
    });
    println!("{len} bytes of {name}: {tally:?}");
}

#[test]
fn a_truncated_last_segment_gives_the_state_of_its_whole_records_and_any_other_is_refused() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let objects = read_by_restore(&sample);
        let lengths: usize = objects.iter().map(|(_, len)| len).sum();
        let ends: Vec<usize> = frames(&sample.store.0[&sample.last])
            .iter()
            // An end mark that is cut or not there is no loss.
            .map(|(_, end)| end - END_MARK)
            .collect();
        let tally = sweep(lengths, |number| {
            let (name, len) = locate(&objects, number);
            let cut = sample.store.0[name][..len].to_vec();
            let found = content(&sample.store.with(name, cut), &sample.keys);
            let whole = ends.iter().filter(|end| **end <= len).count();
            match found {
                Ok(content) if content == sample.full => Ok(Verdict::Full),
                Ok(content) if name == sample.last && content == sample.prefixes[whole] => {
                    Ok(Verdict::Prefix)
                }
                Ok(_) => Err(format!("{name} cut to {len} bytes: another database")),
                Err(error) if name == sample.last => {
                    Err(format!("{name} cut to {len} bytes, as a crash may: {error}"))
                }
                Err(error) => refused(&error, name).map_err(|w| format!("{name} at {len}: {w}")),
            }
        });
        println!("{lengths} truncations: {tally:?}");
        assert!(tally[&Verdict::Prefix] > 500, "{tally:?}");
    }
}

#[test]
fn segments_that_are_removed_swapped_or_renamed_are_missed() {
    for with_snapshot in [false, true] {
        let sample = Sample::make(with_snapshot);
        let newest = *generations(&sample.store).unwrap().last().unwrap();
        let segments: Vec<String> = segments(&sample.store, newest)
            .unwrap()
            .iter()
            .map(|entry| entry.name.to_string())
            .collect();
        assert!(segments.len() >= if with_snapshot { 2 } else { 4 });
        let (last, before) = segments.split_last().unwrap();

        for name in before {
            let changed = sample.store.without(name);
            let error = content(&changed, &sample.keys).unwrap_err();
            assert_eq!(error.class(), Class::Damaged, "without {name}: {error}");
            assert!(error.to_string().contains(".seg'"), "{error}");
            sample.compare_with_the_program(&changed, &format!("without {name}"));
        }
        // Nobody can tell that from a log that was never longer: it is the state before.
        let changed = sample.store.without(last);
        assert_eq!(content(&changed, &sample.keys).unwrap(), sample.prefixes[0]);
        sample.compare_with_the_program(&changed, "without the last segment");

        for (a, first) in segments.iter().enumerate() {
            for second in &segments[a + 1..] {
                let swapped = sample
                    .store
                    .with(first, sample.store.0[second].to_vec())
                    .with(second, sample.store.0[first].to_vec());
                let error = content(&swapped, &sample.keys).unwrap_err();
                assert_eq!(error.class(), Class::Damaged, "{first} and {second}: {error}");
                sample.compare_with_the_program(&swapped, &format!("{first} and {second} swapped"));
                // The same bytes twice: a record cannot be replayed under another name.
                let doubled = sample.store.with(first, sample.store.0[second].to_vec());
                assert!(content(&doubled, &sample.keys).is_err(), "{second} as {first}");
                let doubled = sample.store.with(second, sample.store.0[first].to_vec());
                assert!(content(&doubled, &sample.keys).is_err(), "{first} as {second}");
            }
        }
        if with_snapshot {
            let snapshots: Vec<_> =
                sample.store.0.keys().filter(|name| name.ends_with(".snap")).cloned().collect();
            for name in &snapshots {
                let changed = sample.store.without(name);
                let error = content(&changed, &sample.keys).unwrap_err();
                assert!(error.to_string().contains(name.as_str()), "{error}");
                assert_eq!(exit_code(&error), 13, "a snapshot that is missing: {error}");
                sample.compare_with_the_program(&changed, &format!("without {name}"));
            }
        }
    }
}

#[test]
fn records_that_are_cut_out_swapped_doubled_or_moved_are_refused() {
    let sample = Sample::make(false);
    let segments = sample.store.segments();
    let mut changes = 0;
    for name in &segments {
        let bytes = &sample.store.0[name];
        let frames = frames(bytes);
        let parts = |order: &[usize]| {
            let mut made = bytes[..HEADER_LEN].to_vec();
            order.iter().for_each(|&i| made.extend_from_slice(&bytes[frames[i].0..frames[i].1]));
            made.extend_from_slice(&bytes[frames.last().unwrap().1..]);
            made
        };
        let mut judge = |order: &[usize], what: &str| {
            changes += 1;
            let changed = sample.store.with(name, parts(order));
            // A prefix of the last segment is the state of that prefix, whoever made it.
            let is_prefix = order.iter().enumerate().all(|(place, &frame)| place == frame);
            match content(&changed, &sample.keys) {
                Ok(content) if content == sample.full => {}
                Ok(content) if *name == sample.last && is_prefix => {
                    assert_eq!(content, sample.prefixes[order.len()], "{what} of {name}");
                }
                Ok(_) => panic!("{what} of {name}: another database"),
                Err(error) => {
                    refused(&error, name).unwrap();
                    assert_eq!(error.class(), Class::Damaged, "{what} of {name}: {error}");
                }
            }
            sample.compare_with_the_program(&changed, what);
        };
        let all: Vec<usize> = (0..frames.len()).collect();
        assert_eq!(parts(&all), **bytes);
        for i in 0..frames.len() {
            let mut order = all.clone();
            order.remove(i);
            judge(&order, &format!("frame {i} cut out"));
            let mut order = all.clone();
            order.insert(i, i);
            judge(&order, &format!("frame {i} doubled"));
            if i + 1 < frames.len() {
                let mut order = all.clone();
                order.swap(i, i + 1);
                judge(&order, &format!("frames {i} and {} swapped", i + 1));
            }
        }
    }
    // A record of one segment at the end of another.
    for from in &segments {
        for to in segments.iter().filter(|to| *to != from) {
            let (source, target) = (&sample.store.0[from], &sample.store.0[to]);
            for (start, end) in frames(source) {
                changes += 1;
                let at = frames(target).last().unwrap().1;
                let mut moved = target[..at].to_vec();
                moved.extend_from_slice(&source[start..end]);
                match content(&sample.store.with(to, moved), &sample.keys) {
                    Ok(content) => assert_eq!(content, sample.full, "{from} into {to}"),
                    Err(error) => drop(refused(&error, to).unwrap()),
                }
            }
        }
    }
    println!("{changes} changes of the order of records");
}

#[test]
fn an_older_copy_of_a_segment_is_an_earlier_state_or_refused() {
    let backed = Backed::fresh();
    let mut node = backed.launch();
    node.write(&Step::small_schema()).unwrap().expect_committed();
    let mut copies = Vec::new();
    for session in 0..3 {
        for row in 0..3 {
            let step = Step::transaction([insert(session * 10 + row)]);
            node.write(&step).unwrap().expect_committed();
            let state = backed.dir().path(format!("state-{session}-{row}"));
            let copy = backed.dir().path(format!("copy-{session}-{row}"));
            node.oracle(&state).unwrap();
            copy_dir(&backed.store(), &copy).unwrap();
            copies.push((copy, state));
        }
        node.kill().unwrap();
        node.start().unwrap();
    }
    node.kill().unwrap();
    let newest = files_under(&backed.store().join("log"));
    for (copy, state) in &copies {
        // The whole folder rolled back is that state, whole.
        let dest = backed.new_dest();
        backed.restore_of(&format!("file://{}", copy.display()), &dest).run().expect_success();
        oracle::assert_same(state, &dest);
        // One file of it, in the newest folder.
        for file in files_under(&copy.join("log")) {
            let (old, new) = (copy.join("log").join(&file), backed.store().join("log").join(&file));
            let (old, kept) = (fs::read(old).unwrap(), fs::read(&new).unwrap());
            fs::write(&new, old).unwrap();
            let dest = backed.new_dest();
            let output = backed.restore(&dest).run();
            match output.code {
                Some(0) if fs::read(&new).unwrap() == kept => {}
                Some(0) if Some(&file) == newest.last() => oracle::assert_same(state, &dest),
                Some(0) => backed.check_same_as(&node.database_path()),
                code => assert_eq!(code, Some(13), "{output}"),
            }
            fs::write(&new, kept).unwrap();
        }
    }
    backed.check_same_as(&node.database_path());
}

#[test]
fn zeros_in_place_of_acknowledged_records_are_refused_where_records_follow() {
    // What a disk with a bad block, or a host that wants to, makes of the last segment: records
    // behind it are still there, so it is no interrupted write.
    let sample = Sample::make(true);
    let bytes = &sample.store.0[&sample.last];
    let frames = frames(bytes);
    let last = *frames.last().unwrap();
    let mut tried = 0;
    let sectors = (0..last.0).step_by(SECTOR).map(|start| start..start + SECTOR);
    // One record, whole; and from each to the next sector's end, as where one begins with a sector.
    let records = frames.iter().map(|(start, end)| *start..*end);
    let rests = frames.iter().map(|(start, _)| *start..(start / SECTOR + 2) * SECTOR);
    for part in sectors.chain(records).chain(rests) {
        if part.end > last.0 {
            continue;
        }
        tried += 1;
        let mut changed = bytes.to_vec();
        changed[part.clone()].fill(0);
        let changed = sample.store.with(&sample.last, changed);
        match content(&changed, &sample.keys) {
            Ok(content) => {
                let kept = sample.prefixes.iter().position(|state| *state == content);
                panic!(
                    "zeros at {part:?}: restored without a word, with {kept:?} of {} records",
                    sample.prefixes.len() - 1
                );
            }
            Err(error) => drop(refused(&error, &sample.last).unwrap()),
        }
        sample.compare_with_the_program(&changed, "zeros");
    }
    assert!(tried >= 2, "the segment is too short for this test");
}

#[test]
fn a_write_that_stopped_anywhere_inside_the_last_record_is_dropped() {
    // The last record's sectors reach the disk in any order: any of them may be missing.
    let sample = Sample::make(true);
    let bytes = &sample.store.0[&sample.last];
    let (start, end) = *frames(bytes).last().unwrap();
    let cuts: Vec<usize> = std::iter::once(start)
        .chain((0..end).step_by(SECTOR).filter(|at| (start + 1..end).contains(at)))
        .chain([end])
        .collect();
    let parts: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let before = sample.prefixes.len() - 2;
    for missing in 1_u32..1 << parts.len() {
        let mut changed = bytes.to_vec();
        let mut lost_bytes = 0;
        for (_, part) in parts.iter().enumerate().filter(|(i, _)| missing >> i & 1 == 1) {
            changed[part.clone()].fill(0);
            lost_bytes += part.len();
        }
        if lost_bytes < END_MARK {
            continue; // nothing that could be told from a whole record
        }
        let found = content(&sample.store.with(&sample.last, changed), &sample.keys);
        let found = found.unwrap_or_else(|error| panic!("parts {missing:b} of {parts:?}: {error}"));
        assert!(found == sample.prefixes[before] || found == sample.full, "parts {missing:b}");
    }
}

#[test]
fn backup_cli_judges_a_sample_of_changes_as_the_library_does() {
    let seed = match std::env::var("LOCKSTEP_SEED") {
        Ok(seed) => seed.parse().expect("LOCKSTEP_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("LOCKSTEP_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let sample = Sample::make(true);
    let objects = read_by_restore(&sample);
    for _ in 0..ci_or_long(80, 1_000) {
        let (name, len) = &objects[rng.usize(..objects.len())];
        if name == layout::MARKER {
            continue; // its own test
        }
        let mut bytes = sample.store.0[name].to_vec();
        let what = match rng.u8(..3) {
            0 => {
                bytes.truncate(rng.usize(..*len));
                format!("{name} cut to {} bytes", bytes.len())
            }
            1 => {
                let at = rng.usize(..*len);
                bytes[at] ^= rng.u8(1..);
                format!("{name} changed at {at}")
            }
            _ => {
                let start = rng.usize(..*len);
                let end = (start + rng.usize(..600)).min(*len);
                bytes[start..end].fill_with(|| rng.u8(..));
                format!("{name} overwritten from {start} to {end}")
            }
        };
        sample.compare_with_the_program(&sample.store.with(name, bytes), &what);
    }
}

#[test]
fn the_marker_is_read_with_care() {
    let sample = Sample::make(false);
    let marker = String::from_utf8(sample.store.0[layout::MARKER].to_vec()).unwrap();
    let marker = marker.trim_end_matches('\0');
    let version = marker.replace("\"version\":1", "\"version\":7");
    assert_ne!(version, marker);
    for (bytes, code, words) in [
        (version, 14, "format version 7, this program knows 1"),
        (marker.replace("lockstep", "something"), 13, "not a marker of lockstep"),
        (marker[..marker.len() / 2].to_owned(), 13, "not a marker of lockstep"),
        (String::new(), 13, "not a marker of lockstep"),
        (
            marker.replace(&sample.keys.store().to_string(), &"0".repeat(32)),
            12,
            "is the key of store",
        ),
    ] {
        let (output, _) = sample.restore(&sample.store.with(layout::MARKER, bytes.into_bytes()));
        assert_eq!(output.code, Some(code), "{output}");
        assert!(output.stderr.contains(words), "{words}: {output}");
        assert!(output.stderr.contains("hint: "), "{output}");
    }
    let (output, _) = sample.restore(&sample.store.without(layout::MARKER));
    assert_eq!(output.code, Some(10), "{output}");
    assert!(output.stderr.contains("no backup in"), "{output}");
}

#[test]
fn keys_that_do_not_belong_are_refused_as_such() {
    let ours = Backed::fresh();
    let mut node = ours.launch();
    let first = [
        "CREATE TABLE vars (name TEXT PRIMARY KEY, intval INTEGER)",
        "INSERT INTO vars VALUES ('data_version', 0)",
    ];
    node.write(&Step::transaction(first)).unwrap().expect_committed();
    let other = Backed::without_backup();
    fs::remove_file(other.network_file("hsm_secret")).unwrap();
    other.dir().write_hsm_secret(2);
    other.init().run().expect_success();
    let mut other_node = other.launch();
    other_node.write(&Step::transaction(first)).unwrap().expect_committed();

    let restore = |option: &str, file: PathBuf| {
        let dest = ours.new_dest();
        let cli = Cli::new(["restore", "--no-claim", &ours.url()]);
        let output = cli.arg(&dest).arg(option).arg(file).run();
        assert_eq!(output.code == Some(0), dest.exists());
        output
    };
    restore("--hsm-secret", ours.network_file("hsm_secret")).expect_success();

    let output = restore("--key-file", other.network_file("backup.key")).expect_code(12);
    assert!(output.stderr.contains("is the key of store"), "{output}");
    assert!(output.stderr.contains("hint: use the backup.key of the node"), "{output}");

    let output = restore("--hsm-secret", other.network_file("hsm_secret")).expect_code(12);
    assert!(output.stderr.contains("no node slot opens"), "{output}");
    assert!(output.stderr.contains("hint: use the hsm_secret, words or key file"), "{output}");

    let passphrase = ours.dir().path("passphrase");
    fs::write(&passphrase, "open sesame\n").unwrap();
    let output = restore("--passphrase-file", passphrase).expect_code(12);
    assert!(output.stderr.contains("its slots: node"), "{output}");

    // The right name on the wrong key: same store id, another data key.
    let forged = fs::read_to_string(other.network_file("backup.key")).unwrap();
    let ids = [&ours, &other].map(|node| {
        KeyRing::decode(&fs::read(node.network_file("backup.key")).unwrap()).unwrap().store()
    });
    let path = ours.dir().path("forged.key");
    fs::write(&path, forged.replace(&ids[1].to_string(), &ids[0].to_string())).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let output = restore("--key-file", path).expect_code(12);
    assert!(output.stderr.contains("which the key ring does not hold"), "{output}");
    assert!(output.stderr.contains("log/"), "{output}");

    let newer = ours.dir().path("newer.key");
    let key = fs::read_to_string(ours.network_file("backup.key")).unwrap();
    fs::write(&newer, key.replace("\"version\":1", "\"version\":2")).unwrap();
    fs::set_permissions(&newer, fs::Permissions::from_mode(0o400)).unwrap();
    let output = restore("--key-file", newer).expect_code(14);
    assert!(
        output.stderr.contains("key ring has format version 2, this program knows 1"),
        "{output}"
    );
}

#[test]
fn another_stores_segment_is_refused_by_both_stores_names() {
    let sample = Sample::make(false);
    let other = Sample::make(false);
    // Under a name of ours, so that nothing but its content tells.
    let name = &sample.last;
    let theirs = other.store.0[&other.last].to_vec();
    let changed = sample.store.with(name, theirs);
    let (output, _) = sample.restore(&changed);
    assert_eq!(output.code, Some(13), "{output}");
    let (ours, theirs) = (sample.keys.store().to_string(), other.keys.store().to_string());
    assert!(
        output.stderr.contains(&format!("belongs to store {theirs}, not to {ours}")),
        "{output}"
    );
    assert!(output.stderr.contains(name.as_str()), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
}

/// The next segment of a log, made of these plain frames.
fn next_segment(sample: &Sample, plain: &[Vec<u8>], change: impl Fn(&mut [u8])) -> Memory {
    let end = LogEnd::read(&sample.store, &sample.keys).unwrap();
    let key = sample.keys.current().unwrap();
    let header = Header {
        kind: ObjectKind::Segment,
        key: key.id(),
        store: sample.keys.store(),
        generation: end.position.generation,
        epoch: end.epoch + 1,
        seq: end.position.seq + 1,
        index: 0,
        prev: end.position.chain,
        nonce_prefix: [9; 16],
    };
    let mut bytes = header.encode().to_vec();
    change(&mut bytes);
    let mut sealer = Sealer::new(key, &header);
    for plain in plain {
        sealer.seal(plain, &mut bytes).unwrap();
    }
    let name = layout::SegmentName::of(&header);
    sample.store.with(&name.to_string(), bytes)
}

fn open_record() -> Vec<u8> {
    let open = Open {
        destinations: lockstep_proto::record::Destinations::default(),
        directory: "0".repeat(32),
        host: "elsewhere".into(),
        time: 1_795_196_000_000,
        writer: "a newer program/9".into(),
        session: "0".repeat(32),
        head: Head::default(),
        start: None,
    };
    let mut plain = Vec::new();
    Record::Open(Box::new(open)).encode(&mut plain).unwrap();
    plain
}

#[test]
fn versions_and_kinds_that_this_program_does_not_know_are_refused_with_both_named() {
    let sample = Sample::make(false);
    let intact = next_segment(&sample, &[open_record()], |_| {});
    let (output, _) = sample.restore(&intact);
    assert_eq!(output.code, Some(0), "made as the plugin makes it: {output}");

    let with_check = |header: &mut [u8]| {
        let digest: [u8; 32] = Sha256::digest(&header[..112]).into();
        header[112..128].copy_from_slice(&digest[..16]);
    };
    let version = |header: &mut [u8]| {
        header[8] = 2;
        with_check(header);
    };
    let kind = |header: &mut [u8]| {
        header[10] = 9;
        with_check(header);
    };
    let batch_of_the_future = vec![9, b'?', b'?'];
    let cases = [
        (
            next_segment(&sample, &[open_record()], version),
            "has format version 2, this program knows 1",
        ),
        (next_segment(&sample, &[open_record()], kind), "object kind 9 of format version 1"),
        (
            next_segment(&sample, &[open_record(), batch_of_the_future], |_| {}),
            "record kind 9, this program knows 1 to",
        ),
    ];
    for (changed, words) in cases {
        let (output, _) = sample.restore(&changed);
        assert_eq!(output.code, Some(14), "{words}: {output}");
        assert!(output.stderr.contains(words), "{words}: {output}");
        assert!(output.stderr.contains("log/"), "the place is named: {output}");
        assert!(
            output.stderr.contains("hint: a newer program wrote it; upgrade this one"),
            "{output}"
        );
    }
}

#[test]
fn authentic_records_that_make_no_sense_are_refused() {
    let sample = Sample::make(false);
    let control = |kind: u8, json: &str| [&[kind], json.as_bytes()].concat();
    let cases = [
        vec![open_record(), vec![]],
        vec![open_record(), vec![2]],
        vec![open_record(), vec![2, 1, 0, 0, 0, 0, 1, 2, 3]],
        vec![open_record(), control(3, "{}")],
        vec![open_record(), control(3, r#"{"time":1,"seq":1,"data_version":1}"#)],
        vec![open_record(), control(4, "[1]")],
        vec![control(3, r#"{"time":1,"seq":1,"data_version":1}"#)],
        vec![control(1, "{}")],
    ];
    for frames in cases {
        let (output, _) = sample.restore(&next_segment(&sample, &frames, |_| {}));
        assert_eq!(output.code, Some(13), "{frames:?}: {output}");
        assert!(output.stderr.contains("record seq "), "{frames:?}: {output}");
    }
}

#[test]
fn a_restore_that_does_not_come_to_the_logs_version_is_refused_and_leaves_nothing() {
    let backed = Backed::fresh();
    let mut node = backed.launch();
    node.write(&Step::small_schema()).unwrap().expect_committed();
    let version = node.database().unwrap().data_version().unwrap();
    backed.check_same_as(&node.database_path());
    // As lightningd never does: the version itself is not among the statements.
    let writes = vec![insert(1)];
    let batch = Batch { data_version: version + 1, writes };
    assert_eq!(node.ask_raw(&batch).unwrap(), Answer::Continue);
    node.kill().unwrap();
    let dest = backed.new_dest();
    let output = backed.restore(&dest).run().expect_code(13);
    let words =
        format!("data_version is {version}, the log's newest batch made it {}", version + 1);
    assert!(output.stderr.contains(&words), "{output}");
    assert!(output.stderr.contains("hint: "), "{output}");
    assert!(!dest.exists());
}

#[test]
fn a_plugin_does_not_go_on_over_a_damaged_log() {
    let sample = Sample::make(false);
    let path = sample.backed.store().join(&sample.last);
    let mut bytes = fs::read(&path).unwrap();
    let (start, end) = frames(&bytes)[1];
    bytes[(start + end) / 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let before = files_under(&sample.backed.store());
    let reason = reason_not_to_go_on(&mut Node::new(sample.config.clone()));
    assert!(reason.contains("authentication failed"), "{reason}");
    assert!(reason.contains(&sample.last), "{reason}");
    assert_eq!(files_under(&sample.backed.store()), before);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    for verb in ["status", "verify"] {
        let output = sample.backed.cli(verb).expect_code(13);
        assert!(output.stderr.contains(&sample.last), "{output}");
    }
}

#[test]
fn verify_finds_a_slot_a_claim_or_files_that_are_damaged_where_there_is_one_destination() {
    let sample = Sample::make(false);
    let store = sample.backed.store();
    for (folder, cut) in [(layout::KEYS, true), (layout::EPOCHS, false), (layout::FILES, false)] {
        // The oldest, which nothing else reads any more.
        let name = files_under(&store.join(folder)).remove(0);
        let path = store.join(folder).join(&name);
        let intact = fs::read(&path).unwrap();
        let mut bytes = intact.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= u8::from(!cut);
        bytes.truncate(if cut { middle } else { bytes.len() });
        fs::write(&path, bytes).unwrap();
        let output = sample.backed.cli("verify").expect_code(13);
        let named = format!("'primary' is damaged: '{folder}/{}'", name.display());
        assert!(output.stderr.contains(&named), "{output}");
        assert!(output.stderr.contains("hint: the log and its snapshots are intact"), "{output}");
        let json = Cli::new(["verify", "--json", &sample.backed.url(), "--key-file"]);
        let output = json.arg(sample.backed.network_file("backup.key")).run().expect_code(13);
        assert_eq!(output.json()["destinations"][0]["intact"], false, "{output}");
        fs::write(&path, intact).unwrap();
    }
    sample.backed.cli("verify").expect_success();
}
