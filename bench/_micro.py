import torch, triton
from pipelines.model.kernels import gpu, LowRank
from pipelines.train.attention import SampleBounds, flash_forward, flash_backward
from bench._shapes import sample_lengths
import numpy as np
T,i,h=16384,14336,4096
dev="cuda"; bf=torch.bfloat16
R=lambda *s: torch.randn(*s,device=dev,dtype=bf)
gu,act=R(T,2*i),R(T,i); low=R(T,32); B=R(i,16); A=R(16,i)
g,u,d=LowRank(low[:,:16],B,2.),LowRank(low[:,16:],B,2.),LowRank(low[:,:16],A.T,1.)
y,res,bo=R(T,h),R(T,h),R(h,16); ad=LowRank(low[:,:16],bo,2.)
tb=lambda f: triton.testing.do_bench(f,warmup=5,rep=30,return_mode="median")
import pipelines.model.kernels.gpu as G
orig={n:getattr(G,n) for n in("_swiglu","_add")}
class W:
    def __init__(s,k,w): s.k,s.w=k,w
    def __getitem__(s,g): f=s.k[g]; return lambda *a: f(*a,num_warps=s.w)
for tile in ((64,64),(32,128),(64,128),(16,256),(32,256),(16,512)):
    for w in (4,8):
        G._TILE=tile; G._swiglu=W(orig["_swiglu"],w); G._add=W(orig["_add"],w)
        try: print(tile,w,*["%.3f"%tb(f) for f in (lambda:gpu.swiglu(gu,g,u),lambda:gpu.swiglu_backward_(act,gu,g,u,d),lambda:gpu.add_(y,ad,res))],flush=True)
        except Exception as e: print(tile,w,type(e))
lens=sample_lengths(T,np.random.default_rng(0)); b=SampleBounds.of(torch.from_numpy(lens),dev)
qkv=R(T,6144); cos,sin=R(T,128),R(T,128); s=128**-.5
q,k,v=qkv.unflatten(1,(48,128)).split([32,8,8],1)
o,held=flash_forward(q,k,v,b,s); do=torch.randn_like(o)
print("flash", "%.3f"%tb(lambda:flash_forward(q,k,v,b,s)),"%.3f"%tb(lambda:flash_backward(do,q,k,v,o,held,b,s)))
from pipelines.train.fused import attention as SA
out,lse=SA.short_forward(qkv,32,4,b.blocks,s)
print("short err",float((out.view_as(o)-o).float().norm()/o.float().norm()))
o_={n:getattr(SA,n) for n in("_forward","_backward_q","_backward_kv")}
class W2:
    def __init__(s,k,w,st): s.k,s.w,s.st=k,w,st
    def __getitem__(s,g): f=s.k[g]; return lambda *a: f(*a,num_warps=s.w,num_stages=s.st)
dq=R(T,6144); delta=torch.empty_like(lse)
c=(cos,sin,b.blocks,6144,128,T,s,s*1.44269504,32,4,128,64)
for w in (4,8):
    for st in (1,2,3):
        try:
            f,q_,kv_=[W2(o_[n],w,st) for n in("_forward","_backward_q","_backward_kv")]
            print("short",w,st,"%.3f"%tb(lambda:f[(32,len(b.blocks))](qkv,out,lse,b.blocks,6144,T,s*1.44,32,4,128,64)),"%.3f"%tb(lambda:q_[(32,len(b.blocks))](qkv,dq,out,do,lse,delta,*c)),"%.3f"%tb(lambda:kv_[(8,len(b.blocks))](qkv,dq,do,lse,delta,*c)),flush=True)
        except Exception as e: print(w,st,type(e),str(e)[:80])
x,W_=R(T,4096),R(6144,4096)
print("qkv gemm %.3f"%tb(lambda:x@W_.T), "rms %.3f"%tb(lambda:gpu.rms_norm(x,R(4096),1e-5)))
