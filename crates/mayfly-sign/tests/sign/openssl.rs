//! OpenSSL's opinion, where there is an OpenSSL.

use std::{fs, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use mayfly_core::{Cause, Span};
use mayfly_sign::{KeyRing, LeafKey, PublicUrl, Reason, crl, shards, x509};

use crate::common::{NOW, id, ring, serial, x509_grant};

fn pem(label: &str, ders: &[&[u8]]) -> String {
    ders.iter()
        .map(|der| {
            let lines: Vec<String> = STANDARD
                .encode(der)
                .as_bytes()
                .chunks(64)
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect();
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
        })
        .collect()
}

fn leaf(ring: &KeyRing, slot: u32, path: &str) -> Vec<u8> {
    let key = LeafKey::generate().expect("a key");
    x509::issue(x509_grant(slot, id(path), NOW), &ring.signer(), key).expect("svid").chain_der
}

/// `openssl verify` with everything it can complain about switched on.
fn verify(dir: &Path, leaf: &[u8], more: &[&str]) -> Result<(), String> {
    fs::write(dir.join("leaf.pem"), pem("CERTIFICATE", &[leaf])).expect("written");
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(["verify", "-x509_strict", "-check_ss_sig", "-CAfile", "bundle.pem"])
        .args(["-attime", &NOW.seconds().to_string()])
        .args(more)
        .arg("leaf.pem")
        .output()
        .expect("openssl runs");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn is_missing() -> bool {
    let missing = Command::new("openssl").arg("version").output().is_err();
    if missing {
        eprintln!("SKIPPED: there is no `openssl` here");
    }
    missing
}

#[test]
fn openssl_finds_nothing_to_complain_about() {
    if is_missing() {
        return;
    }
    let ring = ring();
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = ring.x509_bundle();
    let bundle: Vec<&[u8]> = bundle.iter().map(Vec::as_slice).collect();
    fs::write(dir.path().join("bundle.pem"), pem("CERTIFICATE", &bundle)).expect("written");
    let long = format!("/{}", "x".repeat(2000));
    for path in ["/a", "/agent/task/07", &long] {
        let leaf = leaf(&ring, 1, path);
        for purpose in ["sslserver", "sslclient"] {
            assert_eq!(verify(dir.path(), &leaf, &["-purpose", purpose]), Ok(()));
        }
    }
    let stranger = leaf(&crate::common::ring(), 1, "/a");
    assert!(verify(dir.path(), &stranger, &[]).is_err());
}

#[test]
fn openssl_refuses_what_the_list_names() {
    if is_missing() {
        return;
    }
    let ring = ring();
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = ring.x509_bundle();
    let bundle: Vec<&[u8]> = bundle.iter().map(Vec::as_slice).collect();
    fs::write(dir.path().join("bundle.pem"), pem("CERTIFICATE", &bundle)).expect("written");
    let revoked = [(serial(1), NOW, Reason::from(Cause::Exited))];
    let next_update = NOW.plus(Span::from_secs(3600));
    let contents = crl::Contents { number: 1, this_update: NOW, next_update, revoked: &revoked };
    let lists = ring.crls(&contents).expect("lists");
    let lists: Vec<&[u8]> = lists.iter().map(|(_, der)| der.as_slice()).collect();
    fs::write(dir.path().join("crl.pem"), pem("X509 CRL", &lists)).expect("written");
    let check = ["-crl_check_all", "-CRLfile", "crl.pem"];
    let refused = verify(dir.path(), &leaf(&ring, 1, "/a"), &check).expect_err("a refusal");
    assert!(refused.contains("certificate revoked"), "{refused}");
    assert_eq!(verify(dir.path(), &leaf(&ring, 2, "/a"), &check), Ok(()));
}

/// `-crl_check_all`, as nginx does it, asks for the authority's own status too, and shards speak for
/// leaves alone. The full list speaks for both, so no list of authorities is needed beside it.
#[test]
fn openssl_takes_shards_for_leaves_and_the_full_list_for_whole_chains() {
    if is_missing() {
        return;
    }
    let url = PublicUrl::parse("https://mayfly.example.org").expect("a url");
    let ring = ring().with_public_url(Some(url));
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = ring.x509_bundle();
    let bundle: Vec<&[u8]> = bundle.iter().map(Vec::as_slice).collect();
    fs::write(dir.path().join("bundle.pem"), pem("CERTIFICATE", &bundle)).expect("written");
    let revoked = [(serial(1), NOW, Reason::CertificateHold)];
    let next_update = NOW.plus(Span::from_secs(3600));
    let contents = crl::Contents { number: 1, this_update: NOW, next_update, revoked: &revoked };
    let write = |name: &str, lists: Vec<(String, Vec<u8>)>| {
        let lists: Vec<&[u8]> = lists.iter().map(|(_, der)| der.as_slice()).collect();
        fs::write(dir.path().join(name), pem("X509 CRL", &lists)).expect("written");
    };
    let shard = |slot: u32| {
        let number = shards::of(&serial(slot));
        let revoked: &[_] = if number == shards::of(&serial(1)) { &revoked } else { &[] };
        let contents = crl::Contents { revoked, ..contents };
        ring.publisher().shard(number, &contents).expect("a shard")
    };
    write("mine.pem", shard(1));
    write("other.pem", shard(2));
    write("full.pem", ring.crls(&contents).expect("lists"));
    let (held, free) = (leaf(&ring, 1, "/a"), leaf(&ring, 2, "/a"));
    let judge = |leaf: &[u8], how: &str, file: &str| {
        verify(dir.path(), leaf, &[how, "-CRLfile", file]).map_err(|error| {
            let known = ["certificate revoked", "unable to get certificate CRL", "scope"];
            known.into_iter().find(|known| error.contains(known)).unwrap_or("?").to_owned()
        })
    };
    let no = |why: &str| Err(why.to_owned());
    assert_eq!(judge(&held, "-crl_check", "mine.pem"), no("certificate revoked"));
    assert_eq!(judge(&free, "-crl_check", "other.pem"), Ok(()));
    assert!(judge(&free, "-crl_check", "mine.pem").is_err(), "another shard says nothing");
    assert!(judge(&free, "-crl_check_all", "other.pem").is_err(), "nothing about the authority");
    assert_eq!(judge(&held, "-crl_check_all", "full.pem"), no("certificate revoked"));
    assert_eq!(judge(&free, "-crl_check_all", "full.pem"), Ok(()));
}
