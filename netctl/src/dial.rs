//! `netctl dial-stdio`: the far end of `--socket ssh://host`.

use model::{ApiError, Code, client::Target};
use tokio::{
    io::{AsyncWriteExt, copy, stdin, stdout},
    net::UnixStream,
};

use crate::{Run, cli::Context};

pub(crate) async fn run(cx: &Context) -> Run {
    let path = match cx.client.target() {
        Target::Unix(path) => path,
        Target::Ssh(_) => {
            return Err(ApiError::new(
                Code::Invalid,
                "dial-stdio speaks to a socket of this host",
                "netctl --socket /run/netd/netd.sock dial-stdio",
            ));
        }
    };
    let failed = |e| {
        ApiError::new(
            Code::Unreachable,
            format!("cannot reach netd on {}: {e}", path.display()),
            "systemctl status netd",
        )
    };
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    let (mut from, mut to) = stream.into_split();
    let up = tokio::spawn(async move {
        // The end of the input is the end of the request, not of the answer.
        let _ = copy(&mut stdin(), &mut to).await;
        let _ = to.shutdown().await;
    });
    let mut out = stdout();
    let copied = copy(&mut from, &mut out).await;
    up.abort();
    copied.map_err(failed)?;
    out.flush().await.map_err(failed)
}
