//! The stack of what a scenario has created and has to undo.

use super::cgroup_state::CgroupState;
use super::placed::PlacedWorker;
use crate::guest::payload::Running;

/// Something that an operation created or changed, and that the end of its layer undoes.
#[derive(Debug)]
pub(super) enum Resource {
    Cgroup(CgroupState),
    /// The workers of one spawn that have not been stopped.
    Workers(Vec<PlacedWorker>),
    Payload(Box<Running>),
    /// A CPU that was onlined or offlined, and its state before.
    Cpu {
        cpu: u32,
        was_online: bool,
    },
}

impl Resource {
    pub(super) fn cgroup_name(&self) -> Option<&str> {
        match self {
            Self::Cgroup(cgroup) => Some(&cgroup.name),
            _ => None,
        }
    }
}

/// The resources of one phase, in order of creation.
#[derive(Debug)]
struct Layer {
    phase: String,
    resources: Vec<Resource>,
}

/// The resources of all phases that have not ended: the backdrop, then the current step.
#[derive(Debug, Default)]
pub(super) struct Layers(Vec<Layer>);

impl Layers {
    /// Begins a layer, to which resources are added from now on.
    pub(super) fn begin(&mut self, phase: String) {
        self.0.push(Layer { phase, resources: Vec::new() });
    }

    /// Ends the innermost layer, from which all resources have been taken.
    pub(super) fn end(&mut self) {
        let ended = self.0.pop();
        debug_assert!(ended.is_some_and(|layer| layer.resources.is_empty()));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn innermost(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    /// Returns the name of the innermost layer's phase; empty without a layer.
    pub(super) fn phase(&self) -> &str {
        self.0.last().map_or("", |layer| &layer.phase)
    }

    pub(super) fn push(&mut self, resource: Resource) {
        let layer = self.0.last_mut().expect("operations run only inside a layer");
        layer.resources.push(resource);
    }

    /// Takes the resource of the innermost layer that was created last.
    pub(super) fn pop(&mut self) -> Option<Resource> {
        self.0.last_mut()?.resources.pop()
    }

    /// Returns the resources of the innermost layer, in order of creation.
    pub(super) fn of_innermost(&self) -> &[Resource] {
        self.0.last().map_or(&[], |layer| &layer.resources)
    }

    fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.0.iter().flat_map(|layer| &layer.resources)
    }

    fn resources_mut(&mut self) -> impl Iterator<Item = &mut Resource> {
        self.0.iter_mut().flat_map(|layer| &mut layer.resources)
    }

    /// Returns the cgroups, in order of creation.
    pub(super) fn cgroups(&self) -> impl Iterator<Item = &CgroupState> {
        self.resources().filter_map(|resource| match resource {
            Resource::Cgroup(cgroup) => Some(cgroup),
            _ => None,
        })
    }

    /// Returns a cgroup by its name, which only one has at a time.
    pub(super) fn cgroup(&self, name: &str) -> Option<&CgroupState> {
        self.cgroups().find(|cgroup| cgroup.name == name)
    }

    pub(super) fn cgroup_mut(&mut self, name: &str) -> Option<&mut CgroupState> {
        self.resources_mut().find_map(|resource| match resource {
            Resource::Cgroup(cgroup) if cgroup.name == name => Some(cgroup),
            _ => None,
        })
    }

    pub(super) fn forget_cgroup(&mut self, name: &str) {
        let stays = |resource: &Resource| resource.cgroup_name() != Some(name);
        self.0.iter_mut().for_each(|layer| layer.resources.retain(stays));
    }

    /// Returns the workers that have not been stopped, in order of creation.
    pub(super) fn workers(&self) -> impl Iterator<Item = &PlacedWorker> {
        let spawns = self.resources().filter_map(|resource| match resource {
            Resource::Workers(workers) => Some(workers),
            _ => None,
        });
        spawns.flatten()
    }

    pub(super) fn workers_mut(&mut self) -> impl Iterator<Item = &mut PlacedWorker> {
        let spawns = self.resources_mut().filter_map(|resource| match resource {
            Resource::Workers(workers) => Some(workers),
            _ => None,
        });
        spawns.flatten()
    }

    /// Takes the workers for which `which` returns true, given the index of their layer.
    pub(super) fn take_workers(
        &mut self,
        which: impl Fn(usize, &PlacedWorker) -> bool,
    ) -> Vec<PlacedWorker> {
        let mut taken = Vec::new();
        for (index, layer) in self.0.iter_mut().enumerate() {
            layer.resources.retain_mut(|resource| {
                let Resource::Workers(workers) = resource else { return true };
                taken.extend(workers.extract_if(.., |placed| which(index, placed)));
                !workers.is_empty()
            });
        }
        taken
    }

    /// Returns the payloads that have not been stopped, in order of creation.
    pub(super) fn payloads(&self) -> impl Iterator<Item = &Running> {
        self.resources().filter_map(|resource| match resource {
            Resource::Payload(payload) => Some(&**payload),
            _ => None,
        })
    }

    /// Takes the payloads for which `which` returns true, given the index of their layer; the last one
    /// first.
    pub(super) fn take_payloads(
        &mut self,
        which: impl Fn(usize, &Running) -> bool,
    ) -> Vec<Running> {
        let mut taken = Vec::new();
        for (index, layer) in self.0.iter_mut().enumerate() {
            let is_taken = |resource: &mut Resource| match resource {
                Resource::Payload(payload) => which(index, payload),
                _ => false,
            };
            taken.extend(layer.resources.extract_if(.., is_taken));
        }
        let taken = taken.into_iter().rev().filter_map(|resource| match resource {
            Resource::Payload(payload) => Some(*payload),
            _ => None,
        });
        taken.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(name: &str) -> Resource {
        Resource::Cgroup(CgroupState::new(name))
    }

    fn describe(resource: Resource) -> String {
        match resource {
            Resource::Cgroup(cgroup) => cgroup.name,
            Resource::Cpu { cpu, was_online } => format!("CPU {cpu} {was_online}"),
            other => panic!("{other:?}"),
        }
    }

    fn pop_all(layers: &mut Layers) -> Vec<String> {
        std::iter::from_fn(|| layers.pop().map(describe)).collect()
    }

    #[test]
    fn layers_return_resources_in_reverse_order_of_creation() {
        let mut layers = Layers::default();
        layers.begin("backdrop".to_owned());
        layers.push(cgroup("a"));
        layers.begin("step 0".to_owned());
        layers.push(cgroup("b"));
        layers.push(Resource::Cpu { cpu: 3, was_online: true });
        layers.push(cgroup("b/c"));
        layers.push(Resource::Cpu { cpu: 1, was_online: false });
        assert_eq!((layers.phase(), layers.innermost()), ("step 0", 1));
        assert_eq!(pop_all(&mut layers), ["CPU 1 false", "b/c", "CPU 3 true", "b"]);
        layers.end();
        assert_eq!((layers.phase(), layers.innermost()), ("backdrop", 0));
        assert_eq!(pop_all(&mut layers), ["a"]);
        layers.end();
        assert!(layers.is_empty() && layers.pop().is_none());
    }

    #[test]
    fn layers_find_cgroups_by_name_in_any_layer() {
        let mut layers = Layers::default();
        layers.begin("backdrop".to_owned());
        layers.push(cgroup("a"));
        layers.begin("step 0".to_owned());
        layers.push(cgroup("b"));
        layers.cgroup_mut("a").unwrap().is_frozen = true;
        assert!(layers.cgroup("a").is_some_and(|cgroup| cgroup.is_frozen));
        assert!(layers.cgroup("c").is_none() && layers.cgroup_mut("c").is_none());
        layers.forget_cgroup("a");
        assert_eq!(layers.cgroups().map(|cgroup| &*cgroup.name).collect::<Vec<_>>(), ["b"]);
    }
}
