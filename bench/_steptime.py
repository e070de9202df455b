"""Debug: where the host's time of a step goes."""
import time, torch
from pipelines.train import engine as e
T={}
def timed(cls,name):
    f=getattr(cls,name)
    def g(self,*a,**k):
        torch.cuda.synchronize(); t=time.perf_counter(); r=f(self,*a,**k); h=time.perf_counter()-t; torch.cuda.synchronize(); T.setdefault(name,[]).append((h,time.perf_counter()-t)); return r
    setattr(cls,name,g)
for n in ("accumulate","step","sum_over_ranks"): timed(e.DeepSpeedEngine,n)
import pipelines.train.loop as L
c=L.collate_all
def cc(*a):
    t=time.perf_counter(); r=c(*a); torch.cuda.synchronize(); T.setdefault("collate",[]).append((0,time.perf_counter()-t)); return r
L.collate_all=cc
import bench.train as b, sys
from dataclasses import replace
print({k:v for k,v in b.run_ours(replace(b.ARMS[sys.argv[1]],steps=10),False).items() if k in("tokens_per_s","step_s")})
for k,v in T.items(): print(k, [tuple(round(1e3*y,1) for y in x) for x in v[-6:]])
