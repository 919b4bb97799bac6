//! What a broker says of a workload, read.

use mayfly_core::{Denial, TaskId, TaskVersion};
use mayfly_proto::{
    mayfly::v1::TaskReference,
    spiffe::broker::{WorkloadPidReference, WorkloadReference},
};
use prost::Message;

/// A process of this machine.
const PROCESS: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
/// A task of ours.
const TASK: &str = "type.googleapis.com/mayfly.v1.TaskReference";

/// Which workload is meant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wanted {
    /// The process with this number, above 0.
    Process(i32),
    /// This task, in this version if one is named.
    Task(TaskId, Option<TaskVersion>),
}

/// Reads a reference. Types are matched by their whole name: what is not known is refused and never taken
/// for something like it.
pub(super) fn read(reference: Option<WorkloadReference>) -> Result<Wanted, Denial> {
    let packed = reference.and_then(|one| one.reference).ok_or(Denial::ReferenceInvalid)?;
    match packed.type_url.as_str() {
        PROCESS => {
            let WorkloadPidReference { pid } = unpack(&packed.value)?;
            if pid > 0 { Ok(Wanted::Process(pid)) } else { Err(Denial::ReferenceInvalid) }
        }
        TASK => {
            let TaskReference { id, version } = unpack(&packed.value)?;
            let id = TaskId::parse(&id).map_err(|_rule| Denial::ReferenceInvalid)?;
            Ok(Wanted::Task(id, (version > 0).then_some(TaskVersion(version))))
        }
        _ => Err(Denial::ReferenceInvalid),
    }
}

fn unpack<M: Message + Default>(octets: &[u8]) -> Result<M, Denial> {
    M::decode(octets).map_err(|_malformed| Denial::ReferenceInvalid)
}

#[cfg(test)]
mod tests {
    use mayfly_proto::spiffe::broker::KubernetesObjectReference;
    use proptest::{collection::vec, prelude::any, prop_assert_eq, proptest};

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "it is what stands in a request")]
    fn packed(type_url: &str, value: Vec<u8>) -> Option<WorkloadReference> {
        let any = prost_types::Any { type_url: type_url.to_owned(), value };
        Some(WorkloadReference { reference: Some(any) })
    }

    #[test]
    fn point_94_a_reference_is_there_whole_and_of_a_known_type() {
        let pid = |pid| packed(PROCESS, WorkloadPidReference { pid }.encode_to_vec());
        let task = |id: &str, version| {
            packed(TASK, TaskReference { id: id.to_owned(), version }.encode_to_vec())
        };
        let name = "00112233445566778899aabbccddeeff";
        let id = TaskId::parse(name).unwrap();
        assert_eq!(read(pid(7)), Ok(Wanted::Process(7)));
        assert_eq!(read(task(name, 0)), Ok(Wanted::Task(id, None)));
        assert_eq!(read(task(name, 3)), Ok(Wanted::Task(id, Some(TaskVersion(3)))));
        let seven = WorkloadPidReference { pid: 7 }.encode_to_vec();
        for wrong in [
            None,
            Some(WorkloadReference { reference: None }),
            packed("", Vec::new()),
            pid(0),
            pid(-1),
            task("", 0),
            task("7", 0),
            packed(PROCESS, Vec::new()),
            packed(PROCESS, vec![0xff]),
            packed("spiffe.broker.WorkloadPIDReference", seven.clone()),
            packed("type.example.org/spiffe.broker.WorkloadPIDReference", seven.clone()),
            packed("type.googleapis.com/spiffe.broker.WorkloadPidReference", seven),
        ] {
            assert_eq!(read(wrong.clone()), Err(Denial::ReferenceInvalid), "{wrong:?}");
        }
    }

    #[test]
    fn point_98_kubernetes_objects_are_an_unknown_type() {
        const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";
        let object = KubernetesObjectReference { uid: "u".into(), ..Default::default() };
        let read = read(packed(OBJECT, object.encode_to_vec()));
        assert_eq!(read, Err(Denial::ReferenceInvalid));
    }

    proptest! {
        #[test]
        fn point_94_no_octets_are_more_than_invalid(octets in vec(any::<u8>(), 0..64)) {
            for known in [PROCESS, TASK] {
                if let Err(denial) = read(packed(known, octets.clone())) {
                    prop_assert_eq!(denial, Denial::ReferenceInvalid);
                }
            }
        }
    }
}
