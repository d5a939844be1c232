//! Frames: length (4 octets, big endian), then JSON.

use std::io::{Error, ErrorKind, Result};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest piece that is allocated before its octets have come.
const PIECE: usize = 64 << 10;

/// Reads a frame of at most `max` octets. Not cancel-safe.
pub(crate) async fn read_bytes(from: &mut (impl AsyncRead + Unpin), max: usize) -> Result<Vec<u8>> {
    let len = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if len > max {
        let why = format!("a message of {len} octets, {max} are allowed");
        return Err(Error::new(ErrorKind::InvalidData, why));
    }
    // A hostile length costs nothing: memory grows with what really comes.
    let mut out = Vec::with_capacity(len.min(PIECE));
    let limit = u64::try_from(len).unwrap_or(u64::MAX);
    from.take(limit).read_to_end(&mut out).await?;
    if out.len() < len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(out)
}

/// Reads a message.
pub(crate) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), max: usize) -> Result<T> {
    let bytes = read_bytes(from, max).await?;
    serde_json::from_slice(&bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e))
}

/// A message as a frame.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, message)?;
    set_length(&mut out)?;
    Ok(out)
}

/// Octets as a frame.
pub(crate) fn encode_bytes(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; 4];
    out.extend_from_slice(bytes);
    set_length(&mut out)?;
    Ok(out)
}

fn set_length(frame: &mut [u8]) -> Result<()> {
    let len = u32::try_from(frame.len().saturating_sub(4)).map_err(Error::other)?;
    if let Some(head) = frame.first_chunk_mut::<4>() {
        *head = len.to_be_bytes();
    }
    Ok(())
}

/// Writes a message.
pub(crate) async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), message: &T) -> Result<()> {
    to.write_all(&encode(message)?).await?;
    to.flush().await
}
