//! Another host's socket.

use super::*;

/// `ssh` of these tests runs what it is told on this very host, and writes down how it was called.
fn fake_ssh(netd: &Netd, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let bin = netd.folder.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let (path, text) = (bin.join("ssh"), bin.join("ssh.text"));
    fs::write(
        &text,
        format!("#!/bin/sh\necho \"$@\" >>{}/ssh.log\n{script}\n", netd.folder.display()),
    )
    .unwrap();
    // Copied by another process: one that a test beside this one forks just now may hold what is written here, and a file
    // that somebody may write to is not executed.
    assert!(Command::new("cp").arg(&text).arg(&path).status().unwrap().success());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    // The far end's netctl.
    let _ = std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_netctl"), bin.join("netctl"));
    bin
}

fn by_ssh(netd: &Netd, bin: &std::path::Path, target: &str, line: &str) -> Outcome {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new(env!("CARGO_BIN_EXE_netctl"))
        .args(line.split_whitespace())
        .env("NETD_SOCKET", target)
        .env("FAR_SOCKET", netd.folder.join("netd.sock"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Outcome::from(output)
}

#[test]
fn another_host_is_asked_through_ssh() {
    let netd = Netd::new();
    netd.on("GET /v1/cluster/members", &[(200, json!([]))]);
    // What comes behind `--` and the host is the command; there netd's default socket is another one.
    let bin = fake_ssh(
        &netd,
        "while [ \"$1\" != -- ]; do shift; done; shift 2; NETD_SOCKET=$FAR_SOCKET exec \"$@\"",
    );
    let listed = by_ssh(
        &netd,
        &bin,
        "ssh://root@far.example.net:2222",
        "cluster members -o json",
    );
    assert_eq!((listed.code, listed.out.trim()), (0, "[]"), "{}", listed.err);
    let log = fs::read_to_string(netd.folder.join("ssh.log")).unwrap();
    assert_eq!(log, "-T -l root -p 2222 -- far.example.net netctl dial-stdio\n");
    // A socket named by path, and by a flag.
    let socket = netd.folder.join("netd.sock");
    let line = format!("--socket ssh://far{} cluster members -q", socket.display());
    assert_eq!(by_ssh(&netd, &bin, "/nowhere.sock", &line).code, 0);
    assert_eq!(netd.count("GET /v1/cluster/members"), 2);
}

#[test]
fn what_ssh_complains_about_is_told() {
    let netd = Netd::new();
    let bin = fake_ssh(&netd, "echo 'root@far: Permission denied (publickey).' >&2; exit 255");
    let refused = by_ssh(&netd, &bin, "ssh://far", "node ls");
    assert_eq!(refused.code, 4, "{}", refused.err);
    assert!(
        refused
            .err
            .contains("cannot reach netd on ssh://far: root@far: Permission denied (publickey)."),
        "{}",
        refused.err
    );
    // There, netd does not run.
    let bin = fake_ssh(&netd, "while [ \"$1\" != -- ]; do shift; done; shift 2; exec \"$@\"");
    let refused = by_ssh(&netd, &bin, "ssh://far/nowhere.sock", "node ls");
    assert_eq!(refused.code, 4);
    assert!(refused.err.contains("/nowhere.sock"), "{}", refused.err);
    let wrong = by_ssh(&netd, &bin, "ssh://-oProxyCommand=reboot", "node ls");
    assert_eq!(wrong.code, 2, "{}", wrong.err);
}
