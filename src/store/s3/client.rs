//! The HTTP clients for the object store, from the configuration and the environment.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::{BackoffConfig, ClientOptions, RetryConfig, StaticCredentialProvider};
use reqwest::redirect;
use rustls::pki_types::CertificateDer;

use super::open_error::OpenBucketError;
use super::profile::Profile;
use super::retry::RETRY_TIMEOUT;
use super::strict::StrictConnector;
use crate::config::{Bucket, authorities};

/// The time within which a server must accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The time without a byte after which a request fails. The total time is not limited, because a
/// NAR can have 10 GB.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// The same timeout for requests that send or copy many bytes. It includes the time to send a part
/// over a slow network, and the time in which the server assembles the parts. Nix waits for 300 s
/// (`stalled-download-timeout`).
const UPLOAD_READ_TIMEOUT: Duration = Duration::from_secs(120);

/// The HTTP clients for one bucket.
#[derive(Debug)]
pub(super) struct Clients {
    /// The client for short requests.
    pub requests: AmazonS3,
    /// The client for requests that send or copy many bytes.
    pub uploads: AmazonS3,
    /// The client for presigned URLs of requests that `object_store` cannot send.
    pub signed: reqwest::Client,
    /// Whether requests are sent without a signature (`AWS_SKIP_SIGNATURE`).
    pub skip_signature: bool,
}

impl Clients {
    /// Creates the clients for `bucket`, without sending anything.
    pub(super) fn new(bucket: &Bucket) -> Result<Self, OpenBucketError> {
        // This fails if a provider is installed already, for example for the upstreams.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let trusted = authorities();
        let trusted =
            trusted.map_err(|error| OpenBucketError::new(bucket, "cannot be used", error))?;
        let http = |silence| {
            let client = http_client(silence, &trusted);
            client.map_err(|error| OpenBucketError::new(bucket, "cannot be used", error))
        };
        Ok(Self {
            requests: connect(bucket, http(READ_TIMEOUT)?)?,
            uploads: connect(bucket, http(UPLOAD_READ_TIMEOUT)?)?,
            signed: http(READ_TIMEOUT)?,
            skip_signature: skips_signature(&AmazonS3Builder::from_env()),
        })
    }
}

fn http_client(
    silence: Duration,
    trusted: &[CertificateDer<'_>],
) -> reqwest::Result<reqwest::Client> {
    let trusted = trusted.iter().map(|authority| reqwest::Certificate::from_der(authority));
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(silence)
        .http1_only()
        // The target of a redirect would get the session token and presigned URLs.
        .redirect(redirect::Policy::none())
        .referer(false)
        .tls_certs_merge(trusted.collect::<Result<Vec<_>, _>>()?)
        .build()
}

fn connect(bucket: &Bucket, http: reqwest::Client) -> Result<AmazonS3, OpenBucketError> {
    // The configuration may name a server with `http://`. The requests for credentials do not use
    // these options.
    let options = ClientOptions::new().with_allow_http(true).with_timeout_disabled();
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            // A pause is between the first pause and this multiple of the previous one.
            base: 3.0,
        },
        // `retry_timeout` ends the retries.
        max_retries: 1000,
        retry_timeout: RETRY_TIMEOUT,
    };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_client_options(options)
        .with_http_connector(StrictConnector(http))
        .with_retry(retry)
        .with_virtual_hosted_style_request(bucket.virtual_hosted);
    builder = if skips_signature(&builder) {
        // `object_store` needs credentials for a presigned URL, even if it signs no requests.
        builder.with_credentials(Arc::new(StaticCredentialProvider::new(AwsCredential {
            key_id: "unsigned".to_owned(),
            secret_key: String::new(),
            token: None,
        })))
    } else {
        with_profile(builder, bucket)?
    };
    if let Some(region) = &bucket.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &bucket.endpoint {
        builder = builder.with_endpoint(endpoint_of(endpoint, bucket));
    }
    builder.build().map_err(|error| OpenBucketError::new(bucket, "cannot be used", error))
}

fn skips_signature(builder: &AmazonS3Builder) -> bool {
    // The values that `object_store` accepts.
    let value = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).unwrap_or_default();
    ["1", "true", "on", "yes", "y"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// Returns the endpoint for `object_store`, which expects the bucket in the host name if
/// virtual-hosted style is used.
fn endpoint_of(endpoint: &str, bucket: &Bucket) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if bucket.virtual_hosted => {
            format!("{scheme}://{}.{host}", bucket.name)
        }
        _ => endpoint.to_owned(),
    }
}

/// Adds the region and the credentials of a profile: of the one in the configuration, or, if the
/// environment has no credentials, of `AWS_PROFILE` or `default`.
fn with_profile(
    builder: AmazonS3Builder,
    bucket: &Bucket,
) -> Result<AmazonS3Builder, OpenBucketError> {
    let known = |key| builder.get_config_value(&key).is_some();
    let has_credentials = known(AmazonS3ConfigKey::AccessKeyId)
        || known(AmazonS3ConfigKey::WebIdentityTokenFile)
        || known(AmazonS3ConfigKey::ContainerCredentialsRelativeUri)
        || known(AmazonS3ConfigKey::ContainerCredentialsFullUri);
    let name = match &bucket.profile {
        Some(name) => name.clone(),
        None if has_credentials => return Ok(builder),
        None => std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned()),
    };
    let failed = |error| OpenBucketError::new(bucket, "has no usable credentials", error);
    let Some(profile) = Profile::read(&name).map_err(failed)? else {
        return match &bucket.profile {
            Some(name) => Err(OpenBucketError::without_source(
                bucket,
                format!("needs the profile {name}, which is not in ~/.aws"),
            )),
            None => Ok(builder),
        };
    };
    let mut builder = builder;
    if let Some(region) = profile.get("region")
        && builder.get_config_value(&AmazonS3ConfigKey::Region).is_none()
    {
        builder = builder.with_region(region);
    }
    match (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) {
        (Some(key_id), Some(secret_key)) => {
            // The fields of the builder are not used, because a session token in the environment
            // may belong to another key.
            let credential = AwsCredential {
                key_id: key_id.to_owned(),
                secret_key: secret_key.to_owned(),
                token: profile.get("aws_session_token").map(str::to_owned),
            };
            let provider = StaticCredentialProvider::new(credential);
            Ok(builder.with_credentials(Arc::new(provider)))
        }
        _ => match (profile.unsupported(), &bucket.profile) {
            (Some(way), Some(name)) => Err(OpenBucketError::without_source(
                bucket,
                format!(
                    "needs the profile {name}, which has no keys, only {way}, which is not \
                     supported; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
                ),
            )),
            (None, Some(name)) => Err(OpenBucketError::without_source(
                bucket,
                format!(
                    "needs the profile {name}, which lacks aws_access_key_id or \
                     aws_secret_access_key"
                ),
            )),
            (_, None) => Ok(builder),
        },
    }
}
