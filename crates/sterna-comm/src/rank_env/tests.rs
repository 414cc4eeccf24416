use super::*;

/// Variables as the lines that `env` prints, with some changed (`NAME=VALUE`) or left out (`NAME`).
fn read(lines: &str, changes: &[&str]) -> Result<Option<RankEnv>, CommError> {
    let changed = |name: &str| {
        changes.iter().find_map(|change| {
            let (changed, value) =
                change.split_once('=').map_or((*change, None), |(n, v)| (n, Some(v)));
            (changed == name).then_some(value)
        })
    };
    RankEnv::from_lookup(&|name| match changed(name) {
        Some(value) => value.map(str::to_owned),
        None => lines
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .find_map(|(set, value)| (set == name).then(|| value.to_owned())),
    })
}

fn refused(lines: &str, changes: &[&str]) -> String {
    let error = read(lines, changes).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

/// Rank, world size, local rank and local world size, then the address of the store.
fn place(lines: &str, changes: &[&str]) -> (usize, usize, usize, usize, String) {
    let env = read(lines, changes).unwrap().expect("it is a rank");
    let store = format!("{}:{}", env.master_addr, env.master_port);
    (env.rank, env.world_size, env.local_rank, env.local_world_size, store)
}

const TORCHRUN: &str = "\
    RANK=5\nWORLD_SIZE=8\nLOCAL_RANK=1\nLOCAL_WORLD_SIZE=4\nMASTER_ADDR=node-0\nMASTER_PORT=29500\n\
    TORCHELASTIC_USE_AGENT_STORE=True\nTORCHELASTIC_RESTART_COUNT=2";

/// What `srun -n 2` of Slurm 22.05.8 set for its second task.
const SLURM_ONE_NODE: &str = "\
    SLURM_GTIDS=0,1\nSLURM_JOB_ID=1\nSLURM_LOCALID=1\nSLURM_NODEID=0\nSLURM_NTASKS=2\nSLURM_PROCID=1\n\
    SLURM_STEP_ID=0\nSLURM_STEP_NODELIST=vm\nSLURM_STEP_NUM_NODES=1\nSLURM_STEP_NUM_TASKS=2\n\
    SLURM_STEP_TASKS_PER_NODE=2\nSLURM_TASKS_PER_NODE=2";

/// Eleven tasks on three nodes, in the forms of the man page.
const SLURM_NODES: &str = "\
    SLURM_GTIDS=8,9,10\nSLURM_JOB_ID=4321007\nSLURM_LOCALID=2\nSLURM_NODEID=2\nSLURM_PROCID=10\nSLURM_STEP_ID=13\n\
    SLURM_STEP_NODELIST=gpu[01-02,07]\nSLURM_STEP_NUM_TASKS=11\nSLURM_STEP_TASKS_PER_NODE=4(x2),3";

/// What a batch script of Slurm 22.05.8 has; in the second case it was submitted from within a step.
const SLURM_BATCH: &str = "\
    SLURM_GTIDS=0\nSLURM_JOB_ID=2\nSLURM_LOCALID=0\nSLURM_NODEID=0\nSLURM_NTASKS=2\nSLURM_PROCID=0\n\
    SLURM_TASKS_PER_NODE=2";
const SLURM_STEP_AROUND: &str = "\
    SLURM_STEPID=0\nSLURM_STEP_ID=0\nSLURM_STEP_NODELIST=vm\nSLURM_STEP_NUM_NODES=1\nSLURM_STEP_NUM_TASKS=2\n\
    SLURM_STEP_TASKS_PER_NODE=2";

/// What `mpirun -n 2` of Open MPI 4.1.4 set for its second process, within a Slurm batch script.
const OPEN_MPI: &str = "\
    OMPI_COMM_WORLD_LOCAL_RANK=1\nOMPI_COMM_WORLD_LOCAL_SIZE=2\nOMPI_COMM_WORLD_NODE_RANK=1\nOMPI_COMM_WORLD_RANK=1\n\
    OMPI_COMM_WORLD_SIZE=2\nPMIX_RANK=1\nSLURM_LOCALID=0\nSLURM_NODEID=0\nSLURM_NTASKS=2\nSLURM_PROCID=0";

/// What `mpiexec.hydra -n 2` of MPICH 4.0.2 set for its second process within a Slurm batch script, where it starts one proxy
/// by `srun` and the proxy both processes.
const HYDRA: &str = "\
    MPI_LOCALNRANKS=2\nMPI_LOCALRANKID=1\nPMI_FD=6\nPMI_RANK=1\nPMI_SIZE=2\nSLURM_LOCALID=0\nSLURM_NODEID=0\n\
    SLURM_PROCID=0\nSLURM_STEP_ID=1\nSLURM_STEP_NODELIST=vm\nSLURM_STEP_NUM_TASKS=1\nSLURM_STEP_TASKS_PER_NODE=1\n\
    SLURM_JOB_ID=2\nSLURM_GTIDS=0";

#[test]
fn torchrun_variables_are_read() {
    assert_eq!(place(TORCHRUN, &[]), (5, 8, 1, 4, "node-0:29500".to_owned()));
    let env = read(TORCHRUN, &[]).unwrap().unwrap();
    assert!(env.launcher_serves_store);
    assert_eq!(env.restart_count, 2);
}

#[test]
fn without_a_launcher_there_is_no_rank() {
    for lines in ["", "MASTER_ADDR=node-0", "LOCAL_RANK=0", "PMIX_RANK=0", SLURM_BATCH] {
        assert_eq!(read(lines, &[]).unwrap(), None, "{lines}");
    }
}

#[test]
fn a_half_set_environment_names_what_is_missing() {
    for (lines, missing) in [
        (TORCHRUN, "MASTER_PORT"),
        (TORCHRUN, "MASTER_ADDR"),
        (TORCHRUN, "LOCAL_WORLD_SIZE"),
        (TORCHRUN, "RANK"),
        (SLURM_NODES, "SLURM_PROCID"),
        (SLURM_NODES, "SLURM_NODEID"),
        (SLURM_NODES, "SLURM_STEP_TASKS_PER_NODE"),
        (SLURM_NODES, "SLURM_STEP_NODELIST"),
        (SLURM_NODES, "SLURM_JOB_ID"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK"),
        (OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        (HYDRA, "PMI_SIZE"),
        (HYDRA, "MPI_LOCALRANKID"),
    ] {
        let expected = format!("environment variable `{missing}` is not set");
        assert_eq!(refused(lines, &[missing]), expected);
    }
    // Whoever sets only these says nothing about machines.
    let pmi = "PMI_RANK=0\nPMI_SIZE=2";
    assert_eq!(refused(pmi, &[]), "environment variable `MPI_LOCALRANKID` is not set");
}

#[test]
fn values_out_of_range_are_refused() {
    for (lines, change, required) in [
        (TORCHRUN, "RANK=8", "a number below `8`"),
        (TORCHRUN, "LOCAL_RANK=4", "a number below `4`"),
        (TORCHRUN, "WORLD_SIZE=0", "a positive number"),
        (TORCHRUN, "MASTER_PORT=65536", "a TCP port"),
        (TORCHRUN, "RANK=-1", "a number"),
        (SLURM_NODES, "SLURM_PROCID=11", "a number below `11`"),
        (SLURM_NODES, "SLURM_NODEID=3", "a number below `3`"),
        (SLURM_NODES, "SLURM_LOCALID=3", "a number below `3`"),
        (SLURM_NODES, "SLURM_JOB_ID=x", "a number"),
        (
            OPEN_MPI,
            "OMPI_COMM_WORLD_LOCAL_SIZE=3",
            "at most `2`, the value of `OMPI_COMM_WORLD_SIZE`",
        ),
        (HYDRA, "PMI_RANK=2", "a number below `2`"),
    ] {
        let (name, found) = change.split_once('=').unwrap();
        let expected = format!("environment variable `{name}` is `{found}`, must be {required}");
        assert_eq!(refused(lines, &[change]), expected);
    }
}

#[test]
fn a_slurm_task_finds_its_place_and_the_first_node() {
    // 15000 + 10 * (4321007 mod 1000) + 13 mod 10; on one node the store is on loopback.
    assert_eq!(place(SLURM_NODES, &[]), (10, 11, 2, 3, "gpu01:15073".to_owned()));
    assert_eq!(place(SLURM_ONE_NODE, &[]), (1, 2, 1, 2, "127.0.0.1:15010".to_owned()));
    let given = ["MASTER_ADDR=10.0.0.7", "MASTER_PORT=4000"];
    assert_eq!(place(SLURM_NODES, &given).4, "10.0.0.7:4000");
    for (list, first) in [
        ("login1,gpu[01-03]", "login1"),
        ("gpu[01-03,07],login1", "gpu01"),
        ("rack[2,4]-node[008-011]", "rack2-node008"),
        ("a[1-2]b,c", "a1b"),
    ] {
        let store = place(SLURM_NODES, &[&format!("SLURM_STEP_NODELIST={list}")]).4;
        assert_eq!(store, format!("{first}:15073"), "{list}");
    }
    for list in ["gpu[", "gpu[]", "[a-b]", ",gpu1"] {
        let error = refused(SLURM_NODES, &[&format!("SLURM_STEP_NODELIST={list}")]);
        assert!(error.contains("must be nodes as"), "{list}: {error}");
    }
}

#[test]
fn slurm_task_counts_must_add_up() {
    for counts in [
        "4(x2)",
        "4(x2),4",
        "4(x2,3",
        "11(x0)",
        "4,,7",
        "99999999999(x99999999999)",
        "1(x4000000000)",
    ] {
        let error = refused(SLURM_NODES, &[&format!("SLURM_STEP_TASKS_PER_NODE={counts}")]);
        assert!(error.contains("that add up to `11`"), "{counts}: {error}");
    }
}

#[test]
fn where_slurm_lays_tasks_out_by_a_file_the_first_node_says_nothing() {
    let arbitrary = "SLURM_DISTRIBUTION=arbitrary";
    assert_eq!(refused(SLURM_NODES, &[arbitrary]), "environment variable `MASTER_ADDR` is not set");
    assert_eq!(place(SLURM_NODES, &[arbitrary, "MASTER_ADDR=gpu07"]).4, "gpu07:15073");
}

#[test]
fn a_lone_task_may_start_ranks_itself() {
    let alone = [
        "SLURM_STEP_NUM_TASKS=1",
        "SLURM_STEP_TASKS_PER_NODE=1",
        "SLURM_PROCID=0",
        "SLURM_LOCALID=0",
        "SLURM_GTIDS=0",
    ];
    assert_eq!(read(SLURM_ONE_NODE, &alone).unwrap(), None);
    let alone = [
        "OMPI_COMM_WORLD_SIZE=1",
        "OMPI_COMM_WORLD_RANK=0",
        "OMPI_COMM_WORLD_LOCAL_SIZE=1",
        "OMPI_COMM_WORLD_LOCAL_RANK=0",
    ];
    assert_eq!(read(OPEN_MPI, &alone).unwrap(), None);
    // torchrun, though, serves a store that a rank must join.
    let alone = ["RANK=0", "WORLD_SIZE=1", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1"];
    assert_eq!(read(TORCHRUN, &alone).unwrap().unwrap().world_size, 1);
}

#[test]
fn a_script_does_not_become_a_task_of_the_step_that_submitted_it() {
    let lines = format!("{SLURM_BATCH}\n{SLURM_STEP_AROUND}");
    let error = refused(&lines, &[]);
    assert!(
        error.starts_with("environment variable `SLURM_GTIDS` is `0`, must be the `2` tasks"),
        "{error}"
    );
    for step in ["batch", "4294967291", "4294967290"] {
        let change = format!("SLURM_STEP_ID={step}");
        assert_eq!(read(&lines, &[&change]).unwrap(), None, "{step}");
    }
}

#[test]
fn the_innermost_launcher_counts() {
    let (torchrun, mpi) = (place(TORCHRUN, &[]), (1, 2, 1, 2, "127.0.0.1:29500".to_owned()));
    for outer in [SLURM_ONE_NODE, SLURM_NODES, OPEN_MPI, HYDRA] {
        assert_eq!(place(&format!("{outer}\n{TORCHRUN}"), &[]), torchrun, "{outer}");
    }
    assert_eq!(place(OPEN_MPI, &[]), mpi);
    assert_eq!(place(HYDRA, &[]), mpi);
    // mpirun's daemons on other nodes are tasks of a step.
    assert_eq!(place(&format!("{OPEN_MPI}\n{SLURM_STEP_AROUND}"), &[]), mpi);
    // `srun --mpi=pmi2` says rank and size twice.
    let pmi2 = format!("{SLURM_ONE_NODE}\nPMI_RANK=1\nPMI_SIZE=2");
    assert_eq!(place(&pmi2, &[]), place(SLURM_ONE_NODE, &[]));
}

#[test]
fn processes_of_an_mpi_on_several_machines_need_an_address() {
    for (lines, size) in [(OPEN_MPI, "OMPI_COMM_WORLD_SIZE=4"), (HYDRA, "PMI_SIZE=4")] {
        let error = read(lines, &[size]).unwrap_err();
        assert_eq!(error.to_string(), "environment variable `MASTER_ADDR` is not set");
        assert!(error.hint().unwrap().contains("several machines"), "{error}");
        let given = [size, "MASTER_ADDR=node-0", "MASTER_PORT=1234"];
        assert_eq!(place(lines, &given), (1, 4, 1, 2, "node-0:1234".to_owned()));
    }
}

#[test]
fn launchers_that_disagree_are_named() {
    let both = format!("{OPEN_MPI}\n{HYDRA}");
    assert_eq!(place(&both, &[]).0, 1);
    assert_eq!(
        refused(&both, &["PMI_RANK=0"]),
        "environment variable `PMI_RANK` is `0`, but by `OMPI_COMM_WORLD_RANK`, which Open MPI's mpirun sets, it must be `1`"
    );
    // A script may export some of torchrun's variables; they must be true.
    let exported = format!("{SLURM_NODES}\nWORLD_SIZE=11");
    assert_eq!(place(&exported, &[]), place(SLURM_NODES, &[]));
    assert_eq!(
        refused(&exported, &["WORLD_SIZE=3"]),
        "environment variable `WORLD_SIZE` is `3`, but by `SLURM_STEP_NUM_TASKS`, which srun sets, it must be `11`"
    );
}
