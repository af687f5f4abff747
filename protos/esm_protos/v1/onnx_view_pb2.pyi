from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StringStringEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dims", "data_type", "name", "external_data", "data_location")
    DIMS_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXTERNAL_DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_LOCATION_FIELD_NUMBER: _ClassVar[int]
    dims: _containers.RepeatedScalarFieldContainer[int]
    data_type: int
    name: str
    external_data: _containers.RepeatedCompositeFieldContainer[StringStringEntry]
    data_location: int
    def __init__(self, dims: _Optional[_Iterable[int]] = ..., data_type: _Optional[int] = ..., name: _Optional[str] = ..., external_data: _Optional[_Iterable[_Union[StringStringEntry, _Mapping]]] = ..., data_location: _Optional[int] = ...) -> None: ...

class SparseTensor(_message.Message):
    __slots__ = ("values", "indices", "dims")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    values: Tensor
    indices: Tensor
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Union[Tensor, _Mapping]] = ..., indices: _Optional[_Union[Tensor, _Mapping]] = ..., dims: _Optional[_Iterable[int]] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("t", "g", "tensors", "graphs", "sparse_tensor", "sparse_tensors")
    T_FIELD_NUMBER: _ClassVar[int]
    G_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TENSOR_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TENSORS_FIELD_NUMBER: _ClassVar[int]
    t: Tensor
    g: Graph
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    graphs: _containers.RepeatedCompositeFieldContainer[Graph]
    sparse_tensor: SparseTensor
    sparse_tensors: _containers.RepeatedCompositeFieldContainer[SparseTensor]
    def __init__(self, t: _Optional[_Union[Tensor, _Mapping]] = ..., g: _Optional[_Union[Graph, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., graphs: _Optional[_Iterable[_Union[Graph, _Mapping]]] = ..., sparse_tensor: _Optional[_Union[SparseTensor, _Mapping]] = ..., sparse_tensors: _Optional[_Iterable[_Union[SparseTensor, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("input", "output", "op_type", "attribute", "domain")
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    input: _containers.RepeatedScalarFieldContainer[str]
    output: _containers.RepeatedScalarFieldContainer[str]
    op_type: str
    attribute: _containers.RepeatedCompositeFieldContainer[Attribute]
    domain: str
    def __init__(self, input: _Optional[_Iterable[str]] = ..., output: _Optional[_Iterable[str]] = ..., op_type: _Optional[str] = ..., attribute: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., domain: _Optional[str] = ...) -> None: ...

class Dimension(_message.Message):
    __slots__ = ("dim_value", "dim_param")
    DIM_VALUE_FIELD_NUMBER: _ClassVar[int]
    DIM_PARAM_FIELD_NUMBER: _ClassVar[int]
    dim_value: int
    dim_param: str
    def __init__(self, dim_value: _Optional[int] = ..., dim_param: _Optional[str] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("dim",)
    DIM_FIELD_NUMBER: _ClassVar[int]
    dim: _containers.RepeatedCompositeFieldContainer[Dimension]
    def __init__(self, dim: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ...) -> None: ...

class TensorType(_message.Message):
    __slots__ = ("elem_type", "shape")
    ELEM_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    elem_type: int
    shape: Shape
    def __init__(self, elem_type: _Optional[int] = ..., shape: _Optional[_Union[Shape, _Mapping]] = ...) -> None: ...

class SequenceType(_message.Message):
    __slots__ = ("elem_type",)
    ELEM_TYPE_FIELD_NUMBER: _ClassVar[int]
    elem_type: Type
    def __init__(self, elem_type: _Optional[_Union[Type, _Mapping]] = ...) -> None: ...

class MapType(_message.Message):
    __slots__ = ("key_type", "value_type")
    KEY_TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUE_TYPE_FIELD_NUMBER: _ClassVar[int]
    key_type: int
    value_type: Type
    def __init__(self, key_type: _Optional[int] = ..., value_type: _Optional[_Union[Type, _Mapping]] = ...) -> None: ...

class OptionalType(_message.Message):
    __slots__ = ("elem_type",)
    ELEM_TYPE_FIELD_NUMBER: _ClassVar[int]
    elem_type: Type
    def __init__(self, elem_type: _Optional[_Union[Type, _Mapping]] = ...) -> None: ...

class Type(_message.Message):
    __slots__ = ("tensor_type", "sequence_type", "map_type", "sparse_tensor_type", "optional_type")
    TENSOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_TYPE_FIELD_NUMBER: _ClassVar[int]
    MAP_TYPE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_TENSOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_TYPE_FIELD_NUMBER: _ClassVar[int]
    tensor_type: TensorType
    sequence_type: SequenceType
    map_type: MapType
    sparse_tensor_type: TensorType
    optional_type: OptionalType
    def __init__(self, tensor_type: _Optional[_Union[TensorType, _Mapping]] = ..., sequence_type: _Optional[_Union[SequenceType, _Mapping]] = ..., map_type: _Optional[_Union[MapType, _Mapping]] = ..., sparse_tensor_type: _Optional[_Union[TensorType, _Mapping]] = ..., optional_type: _Optional[_Union[OptionalType, _Mapping]] = ...) -> None: ...

class ValueInfo(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: Type
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[Type, _Mapping]] = ...) -> None: ...

class Graph(_message.Message):
    __slots__ = ("node", "initializer", "input", "sparse_initializer")
    NODE_FIELD_NUMBER: _ClassVar[int]
    INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    SPARSE_INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    node: _containers.RepeatedCompositeFieldContainer[Node]
    initializer: _containers.RepeatedCompositeFieldContainer[Tensor]
    input: _containers.RepeatedCompositeFieldContainer[ValueInfo]
    sparse_initializer: _containers.RepeatedCompositeFieldContainer[SparseTensor]
    def __init__(self, node: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., initializer: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., input: _Optional[_Iterable[_Union[ValueInfo, _Mapping]]] = ..., sparse_initializer: _Optional[_Iterable[_Union[SparseTensor, _Mapping]]] = ...) -> None: ...

class Function(_message.Message):
    __slots__ = ("node", "domain", "attribute_proto")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_PROTO_FIELD_NUMBER: _ClassVar[int]
    node: _containers.RepeatedCompositeFieldContainer[Node]
    domain: str
    attribute_proto: _containers.RepeatedCompositeFieldContainer[Attribute]
    def __init__(self, node: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., domain: _Optional[str] = ..., attribute_proto: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ...) -> None: ...

class TrainingInfo(_message.Message):
    __slots__ = ("initialization", "algorithm")
    INITIALIZATION_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    initialization: Graph
    algorithm: Graph
    def __init__(self, initialization: _Optional[_Union[Graph, _Mapping]] = ..., algorithm: _Optional[_Union[Graph, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("ir_version", "graph", "training_info", "functions")
    IR_VERSION_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    TRAINING_INFO_FIELD_NUMBER: _ClassVar[int]
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    ir_version: int
    graph: Graph
    training_info: _containers.RepeatedCompositeFieldContainer[TrainingInfo]
    functions: _containers.RepeatedCompositeFieldContainer[Function]
    def __init__(self, ir_version: _Optional[int] = ..., graph: _Optional[_Union[Graph, _Mapping]] = ..., training_info: _Optional[_Iterable[_Union[TrainingInfo, _Mapping]]] = ..., functions: _Optional[_Iterable[_Union[Function, _Mapping]]] = ...) -> None: ...
