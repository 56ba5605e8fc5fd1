PYTHON ?= python3
BIN := .venv/bin
DATA ?= ../shared/data/mvtec
PEER ?= $(wildcard .peer/bin/python)

.PHONY: help demo test test-all fuzz kills check docs package structure results trained methods cifar scans floors all-methods bench peer parity gpu gpu-bundle clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

# pip shows its progress on a terminal only, and none while it unpacks: the growing folder is a sign of life
define install
	@{ while sleep 8; do echo "  .venv: $$(du -sh .venv | cut -f1)"; done & } ; trap "kill $$!" EXIT; \
		$(BIN)/python -m pip install $(1)
endef

.venv/installed: pyproject.toml
	@echo "Installing anomaly-bench and about 85 packages into .venv: on Linux 6 GB on the disk,"
	@echo "nearly all of it torch with CUDA. For the much smaller CPU build of torch, stop this and run"
	@echo "  make $(or $(MAKECMDGOALS),demo) TORCH_INDEX=URL"
	@echo "with the URL that PyTorch's installation page gives for pip and CPU."
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(call install,--index-url $(TORCH_INDEX) torch torchvision))
	$(call install,--editable .)
	touch $@

.venv/dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	touch $@

DEMO := $(BIN)/anomaly-bench -m results=demo method=padim,patchcore batch_size=1
demo: .venv/installed  ## two methods compared on generated images: tables on the screen, a report with pictures in demo/
	@echo "1 of 3: PaDiM and PatchCore on generated images of a texture"
	$(DEMO) category=weave speed=false > /dev/null
	@echo "2 of 3: both on generated images of an object, with their speed"
	$(DEMO) category=gear
	@echo "3 of 3: the report"
	$(BIN)/anomaly-bench report results=demo out=demo/report.html
	@printf '%s\n' "" "Open demo/report.html in a browser. What you may want next:" \
		"  source .venv/bin/activate" \
		"  anomaly-bench list methods" \
		"  anomaly-bench data download dataset=mvtec data_root=mvtec    # 5.3 GB" \
		"  anomaly-bench method=padim,patchcore -m dataset=folder data_root=DIR    # images of your own"

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(or $(JOBS),2) --dist worksteal --durations 10

test: .venv/dev  ## the tests, without the slow ones
	$(PYTEST) -m "not slow"

test-all: .venv/dev  ## all tests: the whole contract of every method, schedulers, the installed wheel
	$(PYTEST)

fuzz: .venv/dev  ## two minutes of random damage to folders and command lines; MINUTES=120 for two hours
	$(BIN)/python tests/fuzz.py --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED))

kills: .venv/dev  ## 200 kills, stops, full disks and jumps of the clock: no record is lost or computed twice
	$(BIN)/python tests/kills.py

check: .venv/dev docs  ## style, import rules, types, links in the documentation, the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin
	$(BIN)/hadolint Dockerfile

docs: .venv/dev  ## the documentation as a website in build/docs; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/dev  ## wheel and sdist in build/dist, checked by twine
	rm -rf build/dist
	$(BIN)/hatchling build -d build/dist
	$(BIN)/twine check --strict build/dist/*

results: .venv/installed  ## reproduce the committed records and tables; DATA is the folder with MVTec AD's categories
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=0,1,2 \
		input.crop=null,224 gallery=0
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=0 \
		method=patchcore,spade,mahalanobis_ad input.crop=224 gallery=0
	$(BIN)/anomaly-bench -m dataset=mvtec data_root=$(DATA) category=[bottle,transistor] backbone=lite0 seed=1,2 \
		method=patchcore,spade,mahalanobis_ad input.crop=224 gallery=0 speed=false
	$(BIN)/python benchmarks/update_readme.py

RUN ?= $(BIN)/anomaly-bench -m
TRAIN := $(RUN) dataset=mvtec data_root=$(DATA) backbone=lite0 gallery=0
define trained
	$(TRAIN) category=bottle seed=0 $(1)
	$(TRAIN) category=transistor seed=0 speed=false $(1)

endef
define trained_twice
	$(call trained,$(1))
	$(TRAIN) category=bottle seed=1 speed=false $(1)

endef

trained: .venv/dev  ## the committed records of methods that train, each within 20 minutes on two cores
	$(call trained_twice,method=fastflow method.epochs=40)
	$(call trained,method=cflow_ad budget=short)
	$(call trained_twice,method=pefm backbone=lite0_lite1 method.epochs=25)
	$(call trained_twice,method=differnet method.epochs=6 method.views=8 method.train_views=4)
	$(call trained_twice,method=cs_flow method.epochs=3)
	$(call trained,method=reverse_distillation budget=short)
	$(call trained,method=stfpm budget=short)
	$(call trained,method=ae_l2 budget=short)
	$(call trained,method=ae_ssim budget=short)
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=panda,fyd,dfr,fcdd,kdad,patch_svdd
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=uninformed_students \
		method.patches=[33] method.stride=4 method.crop=64 method.teacher_steps=5000
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=cutpaste method.stride=16
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=nsa
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=itae input.resize=128 method.width=32
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=geom method.shift=0
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=adtr,adtr_plus method.grid=8
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=glance,smai
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=2000 method=vae input.resize=146 input.crop=128 \
		method.width=16 method.batch=8
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=2000 method=vevae input.resize=128 method.width=16 \
		method.batch=8
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=cavga_ru
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=vae_grad method.network=ae_l2
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=ganomaly
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=1200 method=anogan method.width=32 method.batch=8 \
		method.moves=100
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=1500 method=f_anogan method.width=16 method.batch=8 \
		method.adversarial=0.6
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=3000 method=pnet input.resize=128 method.width=16 \
		method.batch=8
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false budget=short method=scadn method.width=8
	$(TRAIN) category=[bottle,transistor] seed=0 speed=false method=panda,fyd method.epochs=0
	$(BIN)/python benchmarks/update_readme.py

TEXTURES ?= ../shared/data/tiles
CLASSICAL := $(BIN)/anomaly-bench -m backbone=lite0 gallery=0 speed=false
methods: .venv/dev  ## the committed records of methods without gradient training; TEXTURES is a folder with leather_tiles
	$(CLASSICAL) dataset=mvtec data_root=$(DATA) category=[bottle,transistor] seed=0 method=n_pad,variation_model
	$(CLASSICAL) dataset=mvtec data_root=$(DATA) category=bottle seed=0 method=cnn_feature_dictionary
	$(CLASSICAL) dataset=folder data_root=$(TEXTURES) dataset.textures=[leather_tiles] dataset.name=leather_tiles \
		"dataset.title='MVTec leather, tiles of 256 pixels'" seed=0 method=cnn_feature_dictionary,texture_inspection
	$(BIN)/python benchmarks/update_readme.py

CIFAR ?= ../shared/data/cifar10_jpeg.zip
CLASSES := $(RUN) dataset=cifar10 data_root=$(CIFAR) category=[ship,frog] seed=0 gallery=0 speed=false
cifar: .venv/dev  ## the committed records of one-class networks on CIFAR-10; CIFAR is a folder or archive of its images
	$(CLASSES) method=kde category=all
	$(CLASSES) budget=short method=dsvdd,lsa,ocgan
	$(CLASSES) budget=short method=vae method.image_score=elbo
	$(CLASSES) budget=short method=gradcon dataset.protocol=D
	$(CLASSES) budget=short method=geom category=[automobile,ship] method.shift=0 method.images=2000

SCANS := $(RUN) dataset=synthetic3d seed=0 gallery=0 speed=false
scans: .venv/dev  ## records of methods of 3D data, on generated scans with and without colours
	$(SCANS) category=[bun,block] dataset.modality=depth+xyz,rgb+depth+xyz method=depth_vm,voxel_vm
	$(SCANS) category=[bun,block] dataset.modality=depth+xyz,rgb+depth+xyz method=depth_ae budget=short
	$(SCANS) category=bun dataset.modality=depth+xyz,rgb+depth+xyz method=depth_gan method.adversarial=0.6 budget=short
	$(SCANS) category=bun dataset.modality=depth+xyz,rgb+depth+xyz method=voxel_ae,voxel_gan method.width=16 budget=short
	$(BIN)/python benchmarks/update_readme.py

floors: .venv/dev  ## what the methods that train reach after a single step, and the mean image, beside the committed records
	$(MAKE) trained cifar RUN="$(BIN)/python benchmarks/floors.py"
	$(BIN)/python benchmarks/floors.py

ALL := $(BIN)/anomaly-bench -m results=build/all-methods budget=smoke speed=false gallery=1
all-methods: .venv/installed  ## every method with its smallest budget on one generated category: a table and a report
	-$(ALL) dataset=synthetic category=gear 'method=glob(*)'
	$(ALL) dataset=synthetic3d category=bun 'method=glob([voxel_*,depth_*])'
	$(BIN)/anomaly-bench report results=build/all-methods out=build/all-methods/report.html

structure: .venv/dev  ## measure the package's structure against its targets
	$(BIN)/python benchmarks/structure.py

LOOPS := adtr,method.grid=8 adtr_plus,method.grid=8 cutpaste,method.batch=4 glance,method.batch=8 itae,method.batch=2 \
	kdad,method.batch=4 nsa,method.batch=4 patch_svdd,method.batch=16
bench: .venv/dev  ## speed against lower bounds and, after `make peer`, against anomalib
	$(BIN)/python benchmarks/bench.py --data $(DATA) $(if $(PEER),--peer $(PEER))
	$(BIN)/python benchmarks/bench_neighbours.py --data $(DATA) $(if $(PEER),--peer $(PEER))
	$(BIN)/python benchmarks/bench_tables.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_training.py --loops $(LOOPS)
	$(BIN)/python benchmarks/bench_reconstruction.py
	$(BIN)/python benchmarks/bench_reconstruction.py --peak
	$(BIN)/python benchmarks/bench_sweeps.py --data $(DATA)

peer:  ## install anomalib in a separate environment
	$(PYTHON) -m venv .peer
	.peer/bin/python -m pip install --quiet 'anomalib==2.7.*'

.parity/installed: pyproject.toml
	$(PYTHON) -m venv .parity
	.parity/bin/python -m pip install --quiet --editable . FrEIA 'anomalib==2.7.*' scikit-image pytorch-msssim
	touch $@

parity: .parity/installed  ## compare all methods with public implementations, in a separate environment
	OMP_NUM_THREADS=1 .parity/bin/python benchmarks/parity
	.parity/bin/anomaly-bench references evidence format=md out=docs/evidence.md

GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach glibc,manylinux_2_28 manylinux_2_17 manylinux2014,--platform $(glibc)_x86_64)
gpu-bundle: .venv/dev  ## in build/gpu: wheels and images that a GPU machine without a network needs beside this tree
	rm -rf build/gpu && mkdir -p build/gpu
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
		--python-version $(GPU_PYTHON) $(GPU_PLATFORMS) --dest build/gpu --requirement benchmarks/gpu-wheels.txt
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/gpu 'antlr4-python3-runtime==4.9.*'
	$(BIN)/python benchmarks/gpu_bundle.py $(DATA) build/gpu

gpu:  ## all that wants a GPU, in at most eight minutes; PYTHON is one with torch, the rest is read from build/gpu
	test -d build/gpu/site || $(PYTHON) -m pip install --quiet --no-index --no-deps --target build/gpu/site build/gpu/*.whl
	PYTHONPATH=build/gpu/site $(PYTHON) benchmarks/gpu.py --data build/gpu/data

clean:  ## remove everything the other targets made, except results
	rm -rf .venv .peer .parity demo build
