//! From a URL and its options to a client.

use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Certificate, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
};
use url::{Position, Url};

use super::remote_error::explain;
use crate::store::{Options, StoreError, StoreErrorKind};

/// Requests that read are tried again this often, within …
const RETRIES: usize = 3;
/// … this time.
const RETRY: Duration = Duration::from_secs(20);
/// A connection that gives nothing for so long is dead.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);

/// What a URL may say behind its `?`: everything about the place that is no secret.
const IN_URL: [&str; 7] = [
    "allow_http",
    "ca_file",
    "connect_timeout",
    "endpoint",
    "proxy_url",
    "region",
    "virtual_hosted_style_request",
];

/// A way to a prefix of a bucket.
pub struct Connection {
    /// How messages name it: the URL, without its options.
    pub label: String,
    /// The client.
    pub store: Box<dyn ObjectStore>,
    /// What all names begin with.
    pub prefix: Path,
    /// Whether a listing sees through folders. False for WebDAV, which cannot create either: it overwrites.
    pub flat: bool,
}

/// Makes a client. Nothing is asked of the server.
///
/// # Errors
/// Where URL or options do not make sense.
pub fn connect(url: &Url, options: &Options) -> Result<Connection, StoreError> {
    let label = label(url);
    let failed =
        |kind| StoreError { store: label.clone(), action: "connect to", object: "it".into(), kind };
    let mut options = options.clone();
    for (key, value) in url.query_pairs() {
        if !IN_URL.contains(&&*key) {
            return Err(failed(StoreErrorKind::Remote {
                message: format!("'{key}' does not belong into a URL"),
                hint: "what may stand behind the '?' is listed in docs/operations.md; secrets come from the \
                       environment or from backup-credentials.",
            }));
        }
        if value.parse::<Url>().is_ok_and(|url| url.password().is_some()) {
            return Err(failed(StoreErrorKind::Remote {
                message: format!("a password in '{key}' would be kept in backup.lock and shown"),
                hint: "give LOCKSTEP_DESTINATION_PROXY_URL in the environment or in backup-credentials.",
            }));
        }
        options.insert(key.into_owned(), value.into_owned());
    }
    // The one provider of ciphers that is compiled in; where there is one already, it is that one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = client_options(&options).map_err(failed)?;
    let store = build(url, &options, client).map_err(|error| failed(explain(error)))?;
    let prefix = Path::from_url_path(url.path())
        .map_err(|error| failed(explain(object_store::Error::from(error))))?;
    let flat = !matches!(url.scheme(), "http" | "https");
    Ok(Connection { label, store, prefix, flat })
}

/// The URL without what may be secret, or is of no interest.
pub fn label(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    // Fails only where there can be none.
    let _ = url.set_password(None);
    url.to_string()
}

fn client_options(options: &Options) -> Result<ClientOptions, StoreErrorKind> {
    let mut client = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout(SILENCE)
        .with_connect_timeout(CONNECT);
    for (key, value) in options.iter() {
        let key = key.strip_prefix("lockstep_destination_").unwrap_or(key);
        if let Ok(key) = key.parse::<ClientConfigKey>() {
            client = client.with_config(key, value);
        }
    }
    let ca_file = options.get("ca_file").or(options.get("lockstep_destination_ca_file"));
    if let Some(path) = ca_file {
        let refused = |what: String| StoreErrorKind::Remote {
            message: format!("ca_file '{path}': {what}"),
            hint: "name a file with the certificate, or the chain, in PEM form.",
        };
        let pem = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|_| refused("holds no certificate".into()))?;
        if certificates.is_empty() {
            return Err(refused("holds no certificate".into()));
        }
        for certificate in certificates {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn build(
    url: &Url,
    options: &Options,
    client: ClientOptions,
) -> object_store::Result<Box<dyn ObjectStore>> {
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY,
    };
    let place = &url[..Position::BeforePath];
    Ok(match url.scheme() {
        "s3" => {
            let mut builder = AmazonS3Builder::new().with_url(place).with_client_options(client);
            for (key, value) in options.iter() {
                if let Ok(key) = key.parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            let builder = builder.with_conditional_put(S3ConditionalPut::ETagMatch);
            Box::new(builder.with_retry(retry).build()?)
        }
        "gs" => {
            let mut builder =
                GoogleCloudStorageBuilder::new().with_url(place).with_client_options(client);
            for (key, value) in options.iter() {
                if let Ok(key) = key.parse::<GoogleConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            Box::new(builder.with_retry(retry).build()?)
        }
        "az" => {
            let mut builder =
                MicrosoftAzureBuilder::new().with_url(place).with_client_options(client);
            for (key, value) in options.iter() {
                if let Ok(key) = key.parse::<AzureConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            Box::new(builder.with_retry(retry).build()?)
        }
        _ => {
            let mut origin = url.clone();
            if let (Some(user), password) =
                (options.get("webdav_username"), options.get("webdav_password"))
            {
                // Fails only where a URL can have none, which one with a host can.
                let _ = origin.set_username(user);
                let _ = origin.set_password(password);
            }
            let origin = &origin[..Position::BeforePath];
            let builder = HttpBuilder::new().with_url(origin).with_client_options(client);
            Box::new(builder.with_retry(retry).build()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(url: &str) -> Result<Connection, String> {
        let vars = [
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "topsecret"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ];
        let vars = vars.map(|(key, value)| (key.to_owned(), value.to_owned()));
        connect(&url.parse().unwrap(), &Options::from_vars(vars)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_place_is_named_without_options_and_secrets() {
        let place = connected("s3://bucket/my/node?endpoint=https://nas:9000&region=home").unwrap();
        assert_eq!(place.label, "s3://bucket/my/node");
        assert_eq!(place.prefix.as_ref(), "my/node");
        assert!(place.flat);
        assert_eq!(label(&"https://me:pw@cloud/dav".parse().unwrap()), "https://me@cloud/dav");
    }

    #[test]
    fn each_kind_of_url_leads_to_its_provider() {
        for (url, provider, flat) in [
            ("s3://bucket/node", "AmazonS3", true),
            ("gs://bucket/node", "GoogleCloudStorage", true),
            ("az://container/node", "MicrosoftAzure", true),
            ("https://cloud/dav/node", "HttpStore", false),
        ] {
            let place = connected(url).unwrap();
            let client = format!("{:?}", place.store);
            assert!(client.starts_with(provider), "{url}: {client}");
            assert_eq!(place.flat, flat, "{url}");
        }
    }

    #[test]
    fn a_secret_in_a_url_is_refused_and_not_repeated() {
        let error = connected("s3://bucket/n?secret_access_key=hunter2").err().unwrap();
        assert!(error.contains("'secret_access_key' does not belong into a URL"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn options_are_not_printed() {
        let vars = [("AWS_SECRET_ACCESS_KEY".to_owned(), "topsecret".to_owned())];
        let options = Options::from_vars(vars);
        assert_eq!(format!("{options:?}"), r#"{"aws_secret_access_key"}"#);
    }

    #[test]
    fn a_ca_file_that_holds_no_certificate_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        let error = connected(&format!("s3://b/n?ca_file={path}")).err().unwrap();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
