//! Cgroup paths as engines make them, and as somebody would who wants to be taken for another.

use mayfly_attest::{
    dwelling::{Engine, dwellings},
    procfs::systemd_unit,
};
use proptest::prelude::*;

const ID: &str = "8f1a2b3c4d5e6f708192a3b4c5d6e7f808192a3b4c5d6e7f8091a2b3c4d5e6f7";
const OTHER: &str = "0011223344556677889900112233445566778899001122334455667788990011";
const UID: &str = "3a5b2a0c-1f6e-4c0b-9d5e-7c1d2e3f4a5b";
const UID_UNDERSCORES: &str = "3a5b2a0c_1f6e_4c0b_9d5e_7c1d2e3f4a5b";
const STATIC_UID: &str = "c9a1f2b3d4e5f60718293a4b5c6d7e8f";

/// Fills in the names.
fn path(template: &str) -> String {
    let names = [("ID", ID), ("U_D", UID_UNDERSCORES), ("U-D", UID), ("STATIC", STATIC_UID)];
    names.iter().fold(template.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[test]
fn containers_of_every_engine_are_known_by_their_paths() {
    let docker = Some(Engine::Docker);
    let podman = Some(Engine::Podman);
    let (containerd, crio) = (Some(Engine::Containerd), Some(Engine::Crio));
    for (template, engine, below) in [
        ("/docker/ID", docker, ""),
        ("/docker/ID", docker, "/init"),
        ("/system.slice/docker-ID.scope", docker, ""),
        ("/system.slice/docker-ID.scope", docker, "/kubelet/kubepods/x"),
        ("/my.slice/my-own.slice/docker-ID.scope", docker, ""),
        ("/machine.slice/libpod-ID.scope", podman, ""),
        ("/machine.slice/libpod-ID.scope", podman, "/container"),
        ("/libpod_parent/libpod-ID", podman, ""),
        ("/system.slice/nerdctl-ID.scope", containerd, ""),
        ("/kubepods/burstable/podU-D/ID", None, ""),
        ("/kubepods/besteffort/podU-D/ID", None, "/nested"),
        ("/kubepods/podU-D/ID", None, ""),
        ("/kubepods/burstable/podU-D/crio-ID", crio, ""),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice/cri-containerd-ID.scope",
            containerd,
            "",
        ),
        ("/kubepods.slice/kubepods-podU_D.slice/crio-ID.scope", crio, "/container"),
        ("/kubepods.slice/kubepods-podU_D.slice/docker-ID.scope", docker, ""),
    ] {
        let own = path(template);
        let whole = format!("{own}{below}");
        let found = dwellings(&whole).container.unwrap_or_else(|| panic!("{whole}"));
        assert_eq!((found.id, found.engine, found.cgroup), (ID, engine, own.as_str()), "{whole}");
    }
}

#[test]
fn pods_are_known_by_their_paths_with_either_driver() {
    for (template, below, uid) in [
        ("/kubepods/burstable/podU-D", "", UID),
        ("/kubepods/burstable/podU-D", "/ID", UID),
        ("/kubepods/podU-D", "/ID", UID),
        ("/kubepods/besteffort/podSTATIC", "/ID", STATIC_UID),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podU_D.slice",
            "/cri-containerd-ID.scope",
            UID,
        ),
        ("/kubepods.slice/kubepods-podSTATIC.slice", "/crio-ID.scope", STATIC_UID),
        ("/kubepods.slice/kubepods-podU_D.slice", "", UID),
        (
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_D.slice",
            "/cri-containerd-ID.scope",
            UID,
        ),
    ] {
        let own = path(template);
        let whole = format!("{own}{}", path(below));
        let found = dwellings(&whole).pod.unwrap_or_else(|| panic!("{whole}"));
        assert_eq!((found.uid.as_str(), found.cgroup), (uid, own.as_str()), "{whole}");
        assert_eq!(dwellings(&whole).container.is_some(), !below.is_empty(), "{whole}");
    }
}

/// Whoever may make cgroups below their own can give them any name.
#[test]
fn a_name_that_imitates_a_container_further_down_is_not_believed() {
    for template in [
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
        "/user.slice/user-1000.slice/session-3.scope/docker/ID",
        "/system.slice/web.service/docker-ID.scope",
        "/system.slice/web.service/kubepods/burstable/podU-D/ID",
        "/system.slice/web.service/kubepods-podU_D.slice/cri-containerd-ID.scope",
        "/build/docker/ID",
        "/a/libpod_parent/libpod-ID",
        "/system.slice/docker/ID",
        "/mayfly/kubepods/podU-D/ID",
    ] {
        let whole = path(template);
        let found = dwellings(&whole);
        assert_eq!((found.container, found.pod), (None, None), "{whole}");
    }
    let inner = format!("/docker/{OTHER}/docker/{ID}");
    assert_eq!(dwellings(&inner).container.map(|it| it.id), Some(OTHER), "the outer one counts");
    let inner = path("/system.slice/docker-ID.scope/kubepods/podU-D/ID");
    assert_eq!(dwellings(&inner).pod, None, "a cluster in a container is not this machine's");
}

#[test]
fn what_only_resembles_a_container_is_none() {
    let short = ID.get(..12).expect("an id is longer");
    let long = format!("{ID}0");
    let upper = ID.to_uppercase();
    let mut paths: Vec<String> = [
        "/docker",
        "/docker/",
        "/docker//ID",
        "/docker/ID.scope",
        "/docker/./ID",
        "/docker/../docker/ID",
        "docker/ID",
        "/../docker/ID",
        "/Docker/ID",
        "/machine.slice/libpod-conmon-ID.scope",
        "/system.slice/crio-conmon-ID.scope",
        "/system.slice/docker-ID.service",
        "/system.slice/docker-.scope",
        "/system.slice/xdocker-ID.scope",
        "/system.slice/docker.service",
        "/kubepods/guaranteed/podU-D/ID",
        "/kubepods/burstable/besteffort/podU-D/ID",
        "/kubepods/burstable/podU_D/ID",
        "/kubepods/burstable/U-D/ID",
        "/kubepods/burstable/podID/ID",
        "/libpod_parent/ID",
        "/",
        "",
    ]
    .map(path)
    .into();
    for id in [short, &long, &upper] {
        paths.push(format!("/docker/{id}"));
        paths.push(format!("/system.slice/docker-{id}.scope"));
        paths.push(format!("/machine.slice/libpod-{id}.scope/container"));
    }
    for whole in paths {
        assert_eq!(dwellings(&whole).container, None, "{whole}");
    }
    for template in [
        "/kubepods.slice/kubepods-podU-D.slice/crio-ID.scope",
        "/kubepods.slice/kubepods-pod.slice/crio-ID.scope",
        "/my.slice/my-podU_D.slice/crio-ID.scope",
        "/kubepods.slice/xkubepods-podU_D.slice/crio-ID.scope",
    ] {
        assert_eq!(dwellings(&path(template)).pod, None, "{template}");
    }
}

proptest! {
    /// What is appended below a container changes nothing about who somebody is.
    #[test]
    fn nothing_below_a_container_changes_who_one_is(tail in "(/[a-z0-9.@_-]{1,80}){0,4}") {
        for template in [
            "/docker/ID",
            "/system.slice/docker-ID.scope",
            "/kubepods/podU-D/ID",
            "/kubepods.slice/kubepods-podU_D.slice/cri-containerd-ID.scope",
        ] {
            let own = path(template);
            let whole = format!("{own}{tail}");
            prop_assume!(!whole.split('/').any(|segment| matches!(segment, "." | "..")));
            prop_assert_eq!(dwellings(&whole), dwellings(&own));
        }
    }

    /// Both readers of units agree, whatever the path.
    #[test]
    fn a_unit_is_the_same_to_both_readers(whole in "(/[a-z.@_-]{1,12}(\\.slice|\\.service|\\.scope)?){1,4}") {
        prop_assume!(!whole.split('/').any(|segment| matches!(segment, "." | "..")));
        prop_assert_eq!(dwellings(&whole).unit.map(|unit| unit.name), systemd_unit(&whole));
    }
}
