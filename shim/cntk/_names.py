"""The 175 names that CNTK 2.7's Linux libraries import from Open MPI 1.10.

``nm -D --undefined-only`` lists them; a test compares the lists wherever CNTK is installed.
"""

from __future__ import annotations

_MPI = """
Abort Accumulate Allgather Allgatherv Allreduce Alltoall Alltoallv Alltoallw Barrier Bcast Bsend Bsend_init Cancel
Cart_coords Cart_create Cart_get Cart_map Cart_rank Cart_shift Cart_sub Cartdim_get Comm_accept Comm_connect
Comm_create Comm_delete_attr Comm_disconnect Comm_dup Comm_free Comm_get_attr Comm_get_errhandler Comm_get_name
Comm_group Comm_rank Comm_remote_group Comm_remote_size Comm_set_attr Comm_set_errhandler Comm_set_name Comm_size
Comm_spawn Comm_spawn_multiple Comm_split Comm_test_inter Errhandler_free Error_string Exscan Finalize Gather Gatherv
Get Get_count Get_elements Get_processor_name Graph_create Graph_get Graph_map Graph_neighbors Graph_neighbors_count
Graphdims_get Grequest_complete Group_excl Group_free Group_incl Group_range_excl Group_range_incl Group_rank
Group_size Iallgather Iallreduce Ibsend Info_delete Info_dup Info_free Info_get Info_get_nkeys Info_get_nthkey
Info_get_valuelen Info_set Init_thread Initialized Intercomm_create Intercomm_merge Iprobe Irecv Irsend Isend Issend
Op_commutative Op_create Op_free Pack Pack_external Pack_external_size Pack_size Probe Put Recv Recv_init Reduce
Reduce_local Reduce_scatter Request_free Request_get_status Rsend Rsend_init Scan Scatter Scatterv Send Send_init
Sendrecv Sendrecv_replace Ssend Ssend_init Start Status_set_cancelled Status_set_elements Test Test_cancelled
Topo_test Type_commit Type_contiguous Type_create_darray Type_create_hindexed Type_create_hvector
Type_create_indexed_block Type_create_resized Type_create_subarray Type_delete_attr Type_dup Type_get_attr
Type_get_contents Type_get_envelope Type_get_extent Type_get_name Type_get_true_extent Type_indexed Type_set_attr
Type_set_name Type_size Type_vector Unpack Unpack_external Wait Waitall Waitany Win_call_errhandler Win_complete
Win_delete_attr Win_fence Win_get_errhandler Win_get_group Win_get_name Win_lock Win_post Win_set_attr
Win_set_errhandler Win_set_name Win_start Win_test Win_unlock Win_wait
"""

#: The C functions, those of the C++ classes, and two of Open MPI's own.
FUNCTIONS = (
    *(f"MPI_{name}" for name in _MPI.split()),
    "_ZN3MPI3Win4FreeEv",
    "_ZN3MPI4CommC2Ev",
    "_ZN3MPI8Datatype4FreeEv",
    "ompi_mpi_cxx_op_intercept",
    "ompi_op_set_cxx_callback",
)

#: The objects behind MPI_CHAR, MPI_COMM_WORLD and so on; only their addresses are taken.
DATA = (
    "ompi_mpi_char",
    "ompi_mpi_comm_null",
    "ompi_mpi_comm_world",
    "ompi_mpi_double",
    "ompi_mpi_float",
    "ompi_mpi_int",
    "ompi_mpi_long_long_int",
    "ompi_mpi_op_sum",
)
