//! What a server's answer means to the person who reads it.

use std::io;

use object_store::Error;

use crate::store::StoreErrorKind;

/// Longest message that is passed on, in characters: servers answer with whole pages.
const LONGEST: usize = 300;

const PROXY: &str = "check the proxy, and what 'proxy_url' or LOCKSTEP_DESTINATION_PROXY_URL says of it; \
                     nothing was sent past it.";

/// Words in a server's answer, what they mean, and what to do. The first that is found wins.
const KNOWN: [(&[&str], &str, &str); 11] = [
    (
        &["SOCKS error: credentials not accepted", "SOCKS error: server does not support"],
        "the proxy wants another name and password",
        PROXY,
    ),
    (&["error connecting to socks proxy"], "the proxy does not connect", PROXY),
    (
        &["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"],
        "there is no such bucket",
        "create the bucket, or correct the URL.",
    ),
    (
        &["RequestTimeTooSkewed"],
        "this machine's clock is wrong, the server says",
        "set the clock (timedatectl set-ntp true), then try again.",
    ),
    (
        &[
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AuthenticationFailed",
            "InvalidClientTokenId",
        ],
        "the server does not know these credentials",
        "correct them in the environment or in backup-credentials.",
    ),
    (
        &["AuthorizationHeaderMalformed", "PermanentRedirect", "301 Moved Permanently"],
        "the bucket is in another region",
        "set AWS_REGION, or '?region=' in the URL, to the bucket's own.",
    ),
    (
        &["UnknownIssuer", "invalid peer certificate", "self-signed", "self signed"],
        "the server's certificate is not trusted",
        "if it is your own server, name its certificate's file with '?ca_file=' in the URL.",
    ),
    (
        &["URL scheme is not allowed"],
        "plain HTTP was not asked for",
        "use https; or add '?allow_http=true' to the URL (what is stored is sealed, the password is not).",
    ),
    (
        &["AccessDenied", "403 Forbidden", "AuthorizationFailure"],
        "the server refuses access",
        "these credentials need to read, write, list and delete below that prefix.",
    ),
    (
        &["401 Unauthorized", "MissingCredentials", "EC2MetadataNotFound", "169.254.169.254"],
        "no credentials that the server takes",
        "give them in the environment (AWS_ACCESS_KEY_ID … ) or in backup-credentials.",
    ),
    (
        &["SlowDown", "503 Service", "429 Too Many"],
        "the server is overloaded",
        "try again later; if it lasts, ask the provider.",
    ),
];

/// What an error of the client means.
pub fn explain(error: Error) -> StoreErrorKind {
    let text = whole_text(&error);
    let known = KNOWN.iter().find(|(words, ..)| words.iter().any(|word| text.contains(word)));
    match (&error, known) {
        (Error::AlreadyExists { .. }, _) => StoreErrorKind::Exists,
        // A missing bucket answers as a missing object does.
        (_, Some((_, what, hint))) => {
            StoreErrorKind::Remote { message: format!("{what} ({})", clean(&text)), hint }
        }
        (Error::NotFound { .. }, None) => StoreErrorKind::NotFound,
        (_, None) => StoreErrorKind::Remote {
            message: clean(&text),
            hint: "check the network, and the server behind this URL.",
        },
    }
}

/// True where the connection ended in the middle of an answer.
pub fn broke_off(error: &Error) -> bool {
    let text = whole_text(error);
    ["response body", "reading a body"].iter().any(|words| text.contains(words))
}

/// An error in the middle of an object.
pub fn io_error(error: Error) -> io::Error {
    io::Error::other(clean(&whole_text(&error)))
}

/// The error with all its causes, which a transport error says the decisive thing in.
fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// One line, without what stands behind a `?` (some providers put signatures there), and not too long.
fn clean(text: &str) -> String {
    let words =
        text.split_whitespace().map(|word| word.split_once('?').map_or(word, |(url, _)| url));
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &'static str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn what_is_known_is_said_in_words_with_a_hint() {
        let kind = explain(generic("<Error><Code>RequestTimeTooSkewed</Code></Error>"));
        let StoreErrorKind::Remote { message, hint } = kind else { panic!("{kind:?}") };
        assert!(message.starts_with("this machine's clock is wrong"), "{message}");
        assert!(hint.contains("timedatectl"), "{hint}");
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing =
            |text: &'static str| Error::NotFound { path: "x".into(), source: text.into() };
        assert!(matches!(explain(missing("NoSuchKey")), StoreErrorKind::NotFound));
        assert!(matches!(explain(missing("NoSuchBucket")), StoreErrorKind::Remote { .. }));
    }

    #[test]
    fn signatures_in_urls_are_left_out() {
        let cleaned = clean("PUT https://x.blob/c/o?sig=SECRET&se=1 failed:\n\n  why");
        assert_eq!(cleaned, "PUT https://x.blob/c/o failed: why");
    }
}
