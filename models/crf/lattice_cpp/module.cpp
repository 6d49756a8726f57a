// The Python face: numpy arrays in and out, shapes checked here, the interpreter lock released for all the work.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "lattice.hpp"

namespace py = pybind11;
using lattice::Lattice;

namespace {

using Array = py::array_t<float, py::array::c_style>;

// The interpreter lock given back while it lives. Before 3.14 an interpreter that ends (a second Ctrl-C) makes
// pthread_exit of a thread that asks for the lock: its unwinding would meet a destructor, which is noexcept, and abort
// the process. The thread sleeps instead until the process is gone, as 3.14 has it.
class Unlocked {
public:
    Unlocked() : state(PyEval_SaveThread()) {}
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;
    ~Unlocked() {
        try {
            PyEval_RestoreThread(state);
        } catch (...) {  // not to be left: glibc aborts where its unwinding is caught and not gone on with
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

private:
    PyThreadState* state;
};

std::string shape_of(const py::array& array) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + ")";
}

void expect(const py::array& array, const char* name, const std::vector<py::ssize_t>& shape) {
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    std::string wanted = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) {
        same = same && (shape[i] < 0 || array.shape(i) == shape[i]);
        wanted += (i ? ", " : "") + (shape[i] < 0 ? std::string("*") : std::to_string(shape[i]));
    }
    if (!same) throw py::value_error(std::string(name) + " has shape " + shape_of(array) + ", expected " + wanted + ")");
}

std::shared_ptr<Lattice> build(const Array& features) {
    expect(features, "features_nd", {-1, -1});
    if (features.shape(0) == 0) throw py::value_error("features_nd holds no point");
    const float* data = features.data();
    const auto points = static_cast<std::size_t>(features.shape(0));
    const auto dimensions = static_cast<int>(features.shape(1));
    const Unlocked unlocked;
    return std::make_shared<Lattice>(lattice::kernels().build(data, points, dimensions));
}

Array apply(const Lattice& lattice, const Array& values, bool reverse) {
    expect(values, "values_nk", {static_cast<py::ssize_t>(lattice.points), -1});
    Array out({values.shape(0), values.shape(1)});
    const float* data = values.data();
    const auto channels = static_cast<int>(values.shape(1));
    float* target = out.mutable_data();
    const Unlocked unlocked;
    lattice::kernels().apply(lattice, data, channels, reverse, target);
    return out;
}

Array diagonal(const Lattice& lattice) {
    Array out(static_cast<py::ssize_t>(lattice.points));
    float* target = out.mutable_data();
    const Unlocked unlocked;
    lattice::kernels().diagonal(lattice, target);
    return out;
}

py::tuple pair_energy(const Lattice& lattice, const Array& probs, const Array& soft, bool with_gradient) {
    const auto points = static_cast<py::ssize_t>(lattice.points);
    expect(probs, "probs_kn", {-1, points});
    expect(soft, "soft_n", {points});
    Array gradient({with_gradient ? probs.shape(0) : 0, points});
    const float *data = probs.data(), *factors = soft.data();
    const auto labels = static_cast<int>(probs.shape(0));
    float* target = with_gradient ? gradient.mutable_data() : nullptr;
    double energy;
    {
        const Unlocked unlocked;
        energy = lattice::kernels().pair_energy(lattice, data, labels, factors, target);
    }
    return py::make_tuple(energy, with_gradient ? py::object(gradient) : py::none());
}

lattice::Compatibility compatibility_of(const py::object& given, py::ssize_t labels, std::vector<Array>& kept) {
    lattice::Compatibility found;
    if (py::isinstance<py::float_>(given) || py::isinstance<py::int_>(given)) {
        found.weight = given.cast<float>();
        return found;
    }
    const auto array = given.cast<Array>();
    expect(array, "compatibility", array.ndim() == 1 ? std::vector<py::ssize_t>{labels}
                                                     : std::vector<py::ssize_t>{labels, labels});
    kept.push_back(array);
    found.kind = array.ndim() == 1 ? lattice::Compatibility::DIAGONAL : lattice::Compatibility::FULL;
    found.values = array.data();
    return found;
}

Array mean_field(const Array& unary, const py::sequence& terms, int iterations) {
    expect(unary, "unary_ln", {-1, -1});
    const py::ssize_t labels = unary.shape(0), points = unary.shape(1);
    if (labels == 0 || points == 0) throw py::value_error("unary_ln has shape " + shape_of(unary) + ": nothing to label");
    if (iterations < 0) throw py::value_error("iterations must be 0 or more, not " + std::to_string(iterations));
    std::vector<Array> kept;
    std::vector<std::shared_ptr<Lattice>> lattices;
    std::vector<lattice::Term> plain;
    const auto scale_of = [&](const py::handle& given, const char* name) -> const float* {
        if (given.is_none()) return nullptr;
        kept.push_back(given.cast<Array>());
        expect(kept.back(), name, {points});
        return kept.back().data();
    };
    for (const py::handle& item : terms) {
        const auto term = item.cast<py::sequence>();
        if (term.size() != 4)
            throw py::value_error("a term is (lattice, scale_in_n, scale_out_n, compatibility), not " +
                                  std::to_string(term.size()) + " values");
        lattices.push_back(term[0].cast<std::shared_ptr<Lattice>>());
        if (!lattices.back()) throw py::value_error("a term's lattice is None");
        if (static_cast<py::ssize_t>(lattices.back()->points) != points)
            throw py::value_error("a term's lattice has " + std::to_string(lattices.back()->points) +
                                  " points, unary_ln " + std::to_string(points));
        const float* scale_in = scale_of(term[1], "scale_in_n");
        const float* scale_out = scale_of(term[2], "scale_out_n");
        plain.push_back({lattices.back().get(), scale_in, scale_out, compatibility_of(term[3], labels, kept)});
    }
    Array q({labels, points});
    const float* data = unary.data();
    float* target = q.mutable_data();
    {
        const Unlocked unlocked;
        lattice::kernels().mean_field(data, static_cast<int>(labels), static_cast<std::size_t>(points), plain,
                                      iterations, target);
    }
    return q;
}

}  // namespace

PYBIND11_MODULE(_lattice, module) {
    module.doc() = "Permutohedral lattice: build, filter, mean field; float32, one thread a call, the GIL released.";
    py::class_<Lattice, std::shared_ptr<Lattice>>(module, "Lattice")
        .def_property_readonly("points", [](const Lattice& self) { return self.points; })
        .def_property_readonly("dimensions", [](const Lattice& self) { return self.dimensions; })
        .def_property_readonly("vertices", [](const Lattice& self) { return self.vertices; })
        .def_property_readonly("nbytes", &Lattice::nbytes);
    module.def("build", &build, py::arg("features_nd").noconvert());
    module.def("apply", &apply, py::arg("lattice"), py::arg("values_nk").noconvert(), py::arg("reverse"));
    module.def("diagonal", &diagonal, py::arg("lattice"));
    module.def("pair_energy", &pair_energy, py::arg("lattice"), py::arg("probs_kn").noconvert(),
               py::arg("soft_n").noconvert(), py::arg("with_gradient"));
    module.def("mean_field", &mean_field, py::arg("unary_ln").noconvert(), py::arg("terms"), py::arg("iterations"));
    module.def("instruction_sets", [] { return lattice::available(); });
    module.def("use", [](const std::string& name) {
        if (!lattice::choose(name.c_str())) throw py::value_error("this machine has no instruction set " + name);
    });
}
