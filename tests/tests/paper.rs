//! `secret show` and `secret check`: what is written on paper is the secret, and a slip of the pen is found.

use std::fs;

use lockstep_tests::backed::Backed;
use lockstep_tests::binaries::{Cli, Output};

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

fn secret(backed: &Backed, verb: &str, typed: &str) -> Output {
    let run = Cli::new(["secret", verb, "--lightning-dir"]).arg(backed.network_dir());
    run.stdin(format!("{typed}\n")).run()
}

fn with_secret(content: &[u8]) -> Backed {
    let backed = Backed::without_backup();
    let path = backed.network_file("hsm_secret");
    fs::remove_file(&path).unwrap();
    fs::write(path, content).unwrap();
    backed
}

/// The digits or words of what is shown, without the numbers before them.
fn copied(shown: &str, take: impl Fn(&str) -> bool) -> String {
    let lines = shown.lines().filter(|line| line.starts_with("  "));
    let words = lines.flat_map(str::split_whitespace).filter(|word| take(word));
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn words_are_shown_and_read_back() {
    let backed = with_secret(&[&[0; 32], WORDS.as_bytes()].concat());
    let shown = secret(&backed, "show", "").expect_success();
    assert!(shown.stderr.contains("can take all funds"), "{shown}");
    let paper = copied(&shown.stdout, |word| word.chars().all(char::is_alphabetic));
    assert_eq!(paper, WORDS);
    assert!(shown.stdout.contains(" 1 abandon") && shown.stdout.contains("12 about"), "{shown}");
    let right = secret(&backed, "check", &paper.to_uppercase()).expect_success();
    assert!(right.stdout.starts_with("right: "), "{right}");
    // Another word; other words that are a secret, too; one word less. What was typed is never repeated.
    let other = "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong";
    let cases = [
        (WORDS.replacen("about", "zoo", 1), "checksum"),
        (other.into(), "another secret"),
        (WORDS[8..].into(), "11 words"),
    ];
    for (typed, what) in cases {
        let wrong = secret(&backed, "check", &typed).expect_code(12);
        assert!(wrong.stderr.contains(what), "{typed}: {wrong}");
        assert!(!wrong.stderr.contains("abandon") && !wrong.stderr.contains("zoo"), "{wrong}");
    }
    let json = Cli::new(["secret", "show", "--json", "--lightning-dir"]).arg(backed.network_dir());
    let json = json.run().expect_success().json();
    assert_eq!((json["words"].as_str(), json["hex"].as_str()), (Some(WORDS), None));
}

#[test]
fn digits_are_shown_and_read_back() {
    let backed = with_secret(&(0..32).map(|byte| byte * 7 + 1).collect::<Vec<u8>>());
    let shown = secret(&backed, "show", "").expect_success();
    let paper = copied(&shown.stdout, |word| word.len() == 8);
    assert_eq!(paper.len(), 64 + 7, "eight groups of eight: {shown}");
    secret(&backed, "check", &paper).expect_success();
    secret(&backed, "check", &paper.replace(' ', "").to_uppercase()).expect_success();
    let last = paper.len() - 1;
    let slip = format!("{}{}", &paper[..last], if paper.ends_with('0') { '1' } else { '0' });
    let wrong = secret(&backed, "check", &slip).expect_code(12);
    assert!(wrong.stderr.contains("another secret"), "{wrong}");
    let short = secret(&backed, "check", &paper[..last]).expect_code(12);
    assert!(short.stderr.contains("63 digits were typed"), "{short}");
}

#[test]
fn an_old_node_whose_words_are_on_paper_is_recognised() {
    // Before v25.12 hsmtool made the file of the first half of the words' seed.
    let seed_half = "5eb00bbddcf069084889a8ab9155568165f5c453ccb85e70811aaed6f6da5fc1";
    let bytes: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&seed_half[at..at + 2], 16).unwrap())
        .collect();
    let backed = with_secret(&bytes);
    secret(&backed, "check", WORDS).expect_success();
}
