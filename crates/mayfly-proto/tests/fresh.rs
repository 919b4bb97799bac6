//! What is committed under `src/gen` is what `proto/` says. With `MAYFLY_BLESS` set, writes it.
#![expect(clippy::expect_used, reason = "a test that cannot run should stop")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Messages whose `bytes` are handed on without a copy, as `bytes::Bytes`.
const SHARED_BYTES: [&str; 13] = [
    ".X509SVID",
    ".X509SVIDResponse",
    ".X509BundlesResponse",
    ".JWTBundlesResponse",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.SubscribeToX509SVIDResponse",
    ".spiffe.broker.SubscribeToX509BundlesResponse",
    ".spiffe.broker.SubscribeToJWTBundlesResponse",
    ".mayfly.v1.Window",
    ".mayfly.v1.FollowResponse",
    ".mayfly.v1.Sealed",
    ".mayfly.v1.Batches",
    ".mayfly.v1.Batch",
];

/// Messages whose `Debug` is written by hand in `src/secret.rs`.
const SECRET: [&str; 8] = [
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".envoy.config.core.v3.DataSource",
    ".envoy.service.discovery.v3.DiscoveryResponse",
];

/// What the generator calls a file, and what we call it.
const KEPT: [(&str, &str); 9] = [
    ("_.rs", "spiffe.workload.rs"),
    ("spiffe.broker.rs", "spiffe.broker.rs"),
    ("mayfly.v1.rs", "mayfly.v1.rs"),
    ("envoy.config.core.v3.rs", "envoy.core.rs"),
    ("envoy.service.discovery.v3.rs", "envoy.discovery.rs"),
    ("envoy.service.secret.v3.rs", "envoy.secret.rs"),
    ("envoy.extensions.transport_sockets.tls.v3.rs", "envoy.tls.rs"),
    ("envoy.r#type.v3.rs", "envoy.type.rs"),
    ("google.rpc.rs", "google.rpc.rs"),
];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every `.proto` below `dir`, sorted.
fn protos(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("proto/ can be read") {
        let path = entry.expect("proto/ can be read").path();
        if path.is_dir() {
            found.extend(protos(&path));
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// File names and contents, as they should stand in `src/gen`.
fn generate() -> BTreeMap<String, Vec<u8>> {
    let root = here().join("../../proto").canonicalize().expect("proto/ is there");
    let mut compiler = protox::Compiler::new([&root]).expect("proto/ is a folder");
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(protos(&root)).expect("proto/ compiles");
    let commented = compiler.file_descriptor_set();
    compiler.include_source_info(false);
    let descriptors = compiler.encode_file_descriptor_set();

    let out = tempfile::tempdir().expect("a folder for the output");
    let mut builder = tonic_prost_build::configure()
        .out_dir(out.path())
        .btree_map(".")
        .skip_debug(SECRET)
        .emit_rerun_if_changed(false);
    for path in SHARED_BYTES {
        builder = builder.bytes(path);
    }
    builder.compile_fds(commented).expect("code can be generated");

    let mut files = BTreeMap::from([("descriptors.bin".to_owned(), descriptors)]);
    for (generated, kept) in KEPT {
        let code =
            fs::read_to_string(out.path().join(generated)).expect("the package is generated");
        files.insert(kept.to_owned(), code.into_bytes());
    }
    files
}

fn committed(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("src/gen is there");
    entries
        .map(|entry| {
            let entry = entry.expect("src/gen can be read");
            let name = entry.file_name().into_string().expect("names are text");
            (name, fs::read(entry.path()).expect("src/gen can be read"))
        })
        .collect()
}

#[test]
fn generated_code_is_what_proto_says() {
    let dir = here().join("src/gen");
    let fresh = generate();
    assert_eq!(fresh, generate(), "generation depends on something besides proto/");
    if std::env::var_os("MAYFLY_BLESS").is_some() {
        for (name, content) in &fresh {
            fs::write(dir.join(name), content).expect("src/gen can be written");
        }
    }
    let old = committed(&dir);
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&old), names(&fresh), "src/gen holds other files than proto/ makes");
    for (name, content) in &fresh {
        assert!(
            old.get(name) == Some(content),
            "`{name}` is stale: run `MAYFLY_BLESS=1 cargo test -p mayfly-proto`"
        );
    }
}
