//! Signed requests that make a bucket or a container.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::http::{Answer, request};

/// The access key of every S3 server here.
pub const S3_KEY: &str = "lockstepkey";
/// Its secret.
pub const S3_SECRET: &str = "lockstepsecret";
/// Its region.
pub const S3_REGION: &str = "us-east-1";
/// The storage account of the Azure emulator.
pub const AZURE_ACCOUNT: &str = "lockstep";
/// Its key: 32 bytes, as Azure writes them.
pub const AZURE_KEY: &str = "bG9ja3N0ZXBsb2Nrc3RlcGxvY2tzdGVwbG9ja3N0ZXA=";

/// Makes a bucket on the S3 server at a port of 127.0.0.1.
pub fn make_bucket(port: u16, bucket: &str) -> io::Result<Answer> {
    const PAYLOAD: &str = "UNSIGNED-PAYLOAD";
    const SIGNED: &str = "host;x-amz-content-sha256;x-amz-date";
    let now = Timestamp::now();
    let (day, time) = (now.strftime("%Y%m%d"), now.strftime("%Y%m%dT%H%M%SZ").to_string());
    let canonical = format!(
        "PUT\n/{bucket}\n\nhost:127.0.0.1:{port}\nx-amz-content-sha256:{PAYLOAD}\n\
         x-amz-date:{time}\n\n{SIGNED}\n{PAYLOAD}"
    );
    let scope = format!("{day}/{S3_REGION}/s3/aws4_request");
    let hash = hex(&Sha256::digest(canonical));
    let mut key = format!("AWS4{S3_SECRET}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part);
    }
    let signature = hex(&hmac(&key, &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}")));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={S3_KEY}/{scope}, SignedHeaders={SIGNED}, Signature={signature}"
    );
    let headers = [
        ("x-amz-content-sha256", PAYLOAD),
        ("x-amz-date", &time),
        ("Authorization", &authorization),
    ];
    request(port, "PUT", &format!("/{bucket}"), &headers, b"")
}

/// Makes a container on the Azure emulator at a port of 127.0.0.1.
pub fn make_container(port: u16, container: &str) -> io::Result<Answer> {
    const VERSION: &str = "2021-08-06";
    let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    // The verb, eleven headers that are not there, those that are, and the resource: an emulator's paths
    // begin with the account.
    let text = format!(
        "PUT{}x-ms-date:{date}\nx-ms-version:{VERSION}\n\
         /{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{container}\nrestype:container",
        "\n".repeat(12)
    );
    let key = STANDARD.decode(AZURE_KEY).expect("a key");
    let signature = STANDARD.encode(hmac(&key, &text));
    let authorization = format!("SharedKey {AZURE_ACCOUNT}:{signature}");
    let headers = [
        ("x-ms-date", date.as_str()),
        ("x-ms-version", VERSION),
        ("Authorization", &authorization),
    ];
    request(port, "PUT", &format!("/{AZURE_ACCOUNT}/{container}?restype=container"), &headers, b"")
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
