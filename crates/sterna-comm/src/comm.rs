//! Joining the job.

use std::{sync::Arc, time::Duration};

use sterna_mesh::{Axis, Mesh};
use sterna_torch_sys::c10d::{ProcessGroup, Store};

use crate::{
    error::CommError,
    group::{Engine, Group},
    liveness::Liveness,
    rank_env::RankEnv,
    rendezvous::{endpoint, join_store, rendezvous_error},
};

/// This process's place in the job and its ways to talk to the others.
pub struct Comm {
    /// This rank's place on the mesh.
    pub mesh: Mesh,
    world: Group,
    sp: Group,
    dp: Group,
    /// Where the ranks met, and for how long an operation may last. `None` in a world of one.
    store: Option<(Store, Duration)>,
}

/// How tensors of GPUs travel between ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuTransport {
    /// From GPU to GPU, over NCCL.
    Nccl,
    /// Through the memory of the host, over Gloo.
    Host,
}

impl Comm {
    /// Joins the job. Collective over all ranks, with the same `sp_size` and `timeout`.
    ///
    /// `timeout` limits joining, and later each operation. A world of one touches no network.
    ///
    /// # Errors
    ///
    /// [`CommError::Mesh`] if `sp_size` does not divide the world size; [`CommError::NoRoute`],
    /// [`CommError::LoopbackAcrossMachines`], [`CommError::Listen`] or [`CommError::Rendezvous`] if the ranks do not find each other.
    pub fn init(env: &RankEnv, sp_size: usize, timeout: Duration) -> Result<Self, CommError> {
        let mesh = Mesh::new(env.rank, env.world_size, sp_size)?;
        if env.world_size == 1 {
            let alone = |name| Group { name, rank: 0, size: 1, engine: None };
            return Ok(Self {
                mesh,
                world: alone("world"),
                sp: alone("sp"),
                dp: alone("dp"),
                store: None,
            });
        }
        let store = join_store(env, timeout)?;
        let liveness = Liveness::start(
            store
                .prefixed("liveness")
                .map_err(|source| rendezvous_error(env, "join the store", timeout, source))?,
            env.rank,
            env.world_size,
            env.launcher_serves_store,
        )
        .map_err(|source| rendezvous_error(env, "meet all other ranks", timeout, source))?;
        let builder = Builder { env, store, liveness: Arc::new(liveness), timeout };

        // Every rank builds world, then sp, then dp, so that nobody waits for a peer that is busy with another group.
        // A group of the same ranks as the world shares its connections.
        let world = builder.group("world", 0, env.rank, env.world_size, None)?;
        let of_axis = |axis: Axis| {
            let (local_rank, size) = (mesh.local_rank(axis), mesh.size(axis));
            builder.group(axis.name(), mesh.group_index(axis), local_rank, size, Some(&world))
        };
        let (sp, dp) = (of_axis(Axis::Sp)?, of_axis(Axis::Dp)?);
        tracing::debug!(?mesh, "joined");
        Ok(Self { mesh, world, sp, dp, store: Some((builder.store, timeout)) })
    }

    /// Connects the GPUs of the ranks, if each rank has one of its own; if not, their tensors travel through the host, since NCCL
    /// refuses two ranks on one GPU. The caller has made its GPU the current one.
    ///
    /// # Communication
    ///
    /// One all-gather of a byte. Collective.
    ///
    /// # Errors
    ///
    /// [`CommError::Gpus`] if NCCL is not at hand; those of [`crate::Work::wait`].
    pub fn connect_gpus(&self, has_own_gpu: bool) -> Result<GpuTransport, CommError> {
        let Some((store, timeout)) = &self.store else { return Ok(GpuTransport::Nccl) };
        let of_ranks = self.world.all_gather_bytes(&[u8::from(has_own_gpu)])?;
        if of_ranks.iter().any(|has_own| has_own != &[1]) {
            return Ok(GpuTransport::Host);
        }
        let numbers = [0, self.mesh.group_index(Axis::Sp), self.mesh.group_index(Axis::Dp)];
        for (group, number) in [&self.world, &self.sp, &self.dp].into_iter().zip(numbers) {
            // A group of the same ranks as the world shares its connections.
            let Some(engine) = group.engine.as_ref().filter(|engine| !engine.connects_gpus())
            else {
                continue;
            };
            let prefix = format!("nccl/{}/{number}", group.name);
            store
                .prefixed(&prefix)
                .and_then(|store| ProcessGroup::nccl(&store, group.rank, group.size, *timeout))
                .and_then(|nccl| engine.connect_gpus(nccl))
                .map_err(|source| CommError::Gpus { rank: self.mesh.rank(), source })?;
        }
        Ok(GpuTransport::Nccl)
    }

    /// All ranks.
    pub fn world(&self) -> &Group {
        &self.world
    }

    /// The ranks that share this rank's sequences; its rank there is the [`Mesh::local_rank`].
    pub fn sp(&self) -> &Group {
        &self.sp
    }

    /// The ranks that hold the same part of other sequences; its rank there is the [`Mesh::local_rank`].
    pub fn dp(&self) -> &Group {
        &self.dp
    }

    /// Tells all ranks that this one gives up, see [`Group::abort`].
    pub fn abort(&self, reason: &str) {
        self.world.abort(reason);
    }
}

/// What the groups of one process have in common.
struct Builder<'a> {
    env: &'a RankEnv,
    store: Store,
    liveness: Arc<Liveness>,
    timeout: Duration,
}

impl Builder<'_> {
    /// Connects the ranks of one group. `number` tells it from the other groups of this name.
    fn group(
        &self,
        name: &'static str,
        number: usize,
        rank: usize,
        size: usize,
        world: Option<&Group>,
    ) -> Result<Group, CommError> {
        let engine = match world {
            _ if size == 1 => None,
            Some(world) if world.size == size => world.engine.clone(),
            _ => Some(Arc::new(self.connect(&format!("{name}/{number}"), rank, size)?)),
        };
        Ok(Group { name, rank, size, engine })
    }

    fn connect(&self, prefix: &str, rank: usize, size: usize) -> Result<Engine, CommError> {
        let endpoint = endpoint(self.env)?;
        let process_group = self
            .store
            .prefixed(prefix)
            .and_then(|store| ProcessGroup::gloo(&store, rank, size, self.timeout, &endpoint))
            .map_err(|source| {
                rendezvous_error(
                    self.env,
                    "connect to the ranks of its group",
                    self.timeout,
                    source,
                )
            })?;
        Ok(Engine::new(process_group, Arc::clone(&self.liveness), self.env.rank, self.timeout))
    }
}
