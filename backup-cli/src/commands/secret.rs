//! `secret`: the node's secret as it is written on paper, and whether what is on the paper is right.

use std::path::{Path, PathBuf};

use lockstep_node::{HsmSecretFile, LightningDir, NodeSecret};
use lockstep_proto::hex;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::args::{SecretArgs, SecretCommand};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::unlock;

/// Digits of the hexadecimal form that are written together.
const GROUP: usize = 8;
/// Words on a line.
const WORDS_A_LINE: usize = 4;

#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    form: &'static str,
    node_id: String,
    /// Where the file holds words; their passphrase is not in it.
    words: Option<Zeroizing<String>>,
    needs_passphrase: bool,
    /// Where the secret is 32 bytes: all that there is to write down.
    hex: Option<Zeroizing<String>>,
}

#[derive(Serialize)]
struct Checked {
    file: PathBuf,
    node_id: String,
    same: bool,
}

/// Shows, or checks.
pub fn run(args: &SecretArgs, output: &Output) -> Result<()> {
    match &args.command {
        SecretCommand::Show(args) => {
            let path = secret_file(args.lightning_dir.as_deref(), args.hsm_secret.as_deref())?;
            show(&path, args.secret_passphrase_file.as_deref(), output)
        }
        SecretCommand::Check(args) => {
            let path = secret_file(args.lightning_dir.as_deref(), args.hsm_secret.as_deref())?;
            check(&path, args.secret_passphrase_file.as_deref(), output)
        }
    }
}

fn secret_file(directory: Option<&Path>, file: Option<&Path>) -> Result<PathBuf> {
    let path = match (file, directory) {
        (Some(file), _) => file.to_owned(),
        (None, Some(directory)) => LightningDir::locate(directory)?.hsm_secret(),
        (None, None) => {
            return Err(Failure::new(
                "no secret is named",
                "give --lightning-dir or --hsm-secret.",
            ));
        }
    };
    std::path::absolute(&path).map_err(Failure::file("find", &path))
}

fn show(path: &Path, passphrase_file: Option<&Path>, output: &Output) -> Result<()> {
    let file = HsmSecretFile::read(path)?;
    let secret = unlock::node_secret(path, passphrase_file)?;
    let words = match &file {
        HsmSecretFile::Mnemonic { words } | HsmSecretFile::MnemonicWithPassphrase { words, .. } => {
            Some(words.clone())
        }
        _ => None,
    };
    let shown = Shown {
        file: path.to_owned(),
        form: file.kind(),
        node_id: hex::encode(&secret.node_id()),
        needs_passphrase: words.is_some() && file.needs_passphrase(),
        hex: words.is_none().then(|| Zeroizing::new(hex::encode(secret.as_bytes()))),
        words,
    };
    output.note("warning: whoever sees this can take all funds of the node: no screenshot, no photograph, no cloud");
    output.result(&shown, || text(&shown));
    Ok(())
}

fn text(shown: &Shown) -> String {
    let mut text = format!("the secret of node {}\n\n", shown.node_id);
    if let Some(words) = &shown.words {
        let words: Vec<&str> = words.split(' ').collect();
        for (line, words) in words.chunks(WORDS_A_LINE).enumerate() {
            let numbered = (line * WORDS_A_LINE + 1..).zip(words);
            let line: String =
                numbered.map(|(number, word)| format!("  {number:>2} {word:<10}")).collect();
            text += &format!("{}\n", line.trim_end());
        }
        if shown.needs_passphrase {
            text += "\nand their passphrase, which is not in the file: without it the words are of no use\n";
        }
    }
    if let Some(digits) = &shown.hex {
        for (number, line) in (1..).zip(digits.as_bytes().chunks(2 * GROUP)) {
            let groups = line.chunks(GROUP).map(String::from_utf8_lossy);
            text += &format!("  {number}  {}\n", groups.collect::<Vec<_>>().join(" "));
        }
        text += "\n64 digits, 0 to 9 and a to f; this secret has no words\n";
    }
    text + "\nnext: 'backup-cli secret check' reads it back from the paper"
}

fn check(path: &Path, passphrase_file: Option<&Path>, output: &Output) -> Result<()> {
    let file = unlock::node_secret(path, passphrase_file)?;
    let typed = typed(path, passphrase_file)?;
    let same = *file.as_bytes() == *typed.as_bytes()
        || typed.first_half().is_some_and(|half| half.as_bytes() == file.as_bytes());
    let checked = Checked { file: path.to_owned(), node_id: hex::encode(&file.node_id()), same };
    if !same {
        return Err(Failure::wrong_key(
            format!(
                "what was typed is another secret: that of node {}, not of {}",
                hex::encode(&typed.node_id()),
                checked.node_id
            ),
            "compare the paper with 'backup-cli secret show', digit by digit or word by word.",
        ));
    }
    output.result(&checked, || {
        format!("right: what was typed is the secret of node {}", checked.node_id)
    });
    Ok(())
}

/// The words, or the 64 digits.
fn typed(path: &Path, passphrase_file: Option<&Path>) -> Result<NodeSecret> {
    let text = unlock::ask("words or digits from the paper: ")?;
    let digits = Zeroizing::new(text.split_whitespace().collect::<String>());
    if let Some(secret) = hex::decode::<32>(&digits).map(Zeroizing::new) {
        return Ok(NodeSecret::from_raw(&secret));
    }
    if digits.chars().any(|character| character.is_ascii_digit()) {
        return Err(Failure::wrong_key(
            format!("{} digits were typed, expected 64 of 0 to 9 and a to f", digits.len()),
            "type them as they are written; blanks do not matter.",
        ));
    }
    let passphrase = match HsmSecretFile::read(path)? {
        HsmSecretFile::MnemonicWithPassphrase { .. } => match passphrase_file {
            Some(file) => unlock::first_line(file)?,
            None => unlock::ask("their passphrase: ")?,
        },
        _ => Zeroizing::default(),
    };
    Ok(NodeSecret::from_words(&text, &passphrase)?)
}
