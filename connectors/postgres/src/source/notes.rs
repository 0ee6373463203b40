//! Small files beside the log, of what the stream does not say.

use crossfade_connector::Failure;
use std::path::Path;
use tokio::io::AsyncWriteExt;

/// Writes a file whole or not at all, and durable before it is in its place.
pub(super) async fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let beside = file.with_extension("new");
    let written = async {
        let mut new = tokio::fs::File::create(&beside).await?;
        new.write_all(text.as_bytes()).await?;
        new.sync_all().await?;
        tokio::fs::rename(&beside, file).await
    };
    written.await.map_err(|error| Failure::retry(format!("writing {}", file.display()), error))
}
