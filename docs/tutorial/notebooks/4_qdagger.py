# %% [markdown]
# # 4. QDagger
#
# A new agent starts from an old one. The teacher is a Pong agent that comes with the project. You write the loss that
# makes a student follow its teacher, and the rule by which the teacher lets go. Then a student learns Pong in minutes,
# where an agent from scratch takes hours.
#
# Fill in what is marked `your code here`. A cell prints *Right* or fails. Later cells do not depend on your answers. Half
# an hour, of which the computer works for about ten minutes on two modern cores.

# %%
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import Image
from PIL import Image as Picture
from PIL import ImageSequence

from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl_utils import enjoy
from cleanrl_utils.flags import parse

TEACHER_STEPS = 20_000  # of Pong, played by the teacher
OFFLINE_STEPS = 8_000  # updates on those games
ONLINE_STEPS = 5_000  # of Pong, played by the student
GAMES = 10  # of each evaluation

# %% [markdown]
# ## Following a teacher
#
# The teacher is a DQN: it has Q-values. Divided by a *temperature* and put through a softmax they become probabilities of
# actions,
#
# $$\pi_T(a \mid s) = \mathrm{softmax}(Q_T(s, a) / \tau)$$
#
# and the same for the student. The student should choose as the teacher does, so its loss is the divergence
#
# $$\sum_a \pi_T(a \mid s) \left( \log \pi_T(a \mid s) - \log \pi_S(a \mid s) \right)$$
#
# It is 0 where both agree, whatever their values.
#
# ### Exercise 1: the distillation loss


# %%
def distillation_loss(q_values, teacher_q_values, temperature):
    """The divergence of the student's policy from the teacher's, both from values (B, A), averaged over the batch: ()."""
    # YOUR CODE: `F.log_softmax(values, dim=1)` gives log probabilities
    student = F.log_softmax(q_values / temperature, dim=1)
    teacher = F.log_softmax(teacher_q_values / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1).mean()
    # END


agree = distillation_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0)
assert abs(agree) < 1e-6, "softmax sees differences only"
# By hand: at temperature 0.5 the teacher's log odds are log(3), so 3/4 and 1/4; the student's are even.
teacher_values = torch.tensor([[0.5 * torch.log(torch.tensor(3.0)), 0.0], [0.0, 0.0]])
loss = distillation_loss(torch.zeros(2, 2), teacher_values, temperature=0.5)
by_hand = 0.5 * (0.75 * torch.log(torch.tensor(1.5)) + 0.25 * torch.log(torch.tensor(0.5)))
assert torch.isclose(loss, by_hand), (loss, by_hand)
print("Right.")

# %% [markdown]
# ## The temperature matters
#
# In Pong the teacher's values of different actions differ by a few hundredths. At temperature 1 a softmax of them is
# nearly even: there is nothing to follow.

# %%
values = torch.tensor([0.52, 0.50, 0.49, 0.55, 0.50, 0.51])
for temperature in (1.0, 0.1, 0.03):
    print(f"temperature {temperature}:", [f"{p:.0%}" for p in F.softmax(values / temperature, dim=0)])

# %% [markdown]
# ## Letting go
#
# The loss of QDagger is $L = L_\text{TD} + \lambda L_\text{distill}$. While the student learns from the teacher's games,
# $\lambda$ stays whole. Later the student plays its own games, and the better it plays, the less it needs its teacher:
#
# $$\lambda = \lambda_0 \left( 1 - \frac{G_S - G_\text{random}}{G_T - G_\text{random}} \right)$$
#
# with the returns $G$ of student, teacher and a random player; $\lambda$ is kept between 0 and $\lambda_0$.
#
# ### Exercise 2: how much is left


# %%
def left(student_return, teacher_return, random_return):
    """The bracket above, between 0 and 1."""
    # YOUR CODE
    share = (student_return - random_return) / (teacher_return - random_return)
    return min(max(1.0 - share, 0.0), 1.0)
    # END


assert left(-20.0, 20.0, -20.0) == 1.0, "as good as random: all of it"
assert left(0.0, 20.0, -20.0) == 0.5
assert left(21.0, 20.0, -20.0) == 0.0, "better than the teacher: nothing"
assert left(-21.0, 20.0, -20.0) == 1.0, "never more than all"
print("Right.")

# %% [markdown]
# ## A student of Pong
#
# The script does the rest: it evaluates the teacher and a random player, lets the teacher play, trains the student on
# those games, then lets the student play and learn on its own. The student has the network of the DQN paper, which is the
# fastest on a CPU; the script's own default is larger.

# %%
command = f"""--env-id PongNoFrameskip-v4 --student nature --save-model --no-compile --eval-max-frames 27000
    --teacher-eval-episodes {GAMES} --eval-episodes {GAMES}
    --teacher-steps {TEACHER_STEPS} --teacher-start-e 0.5 --offline-steps {OFFLINE_STEPS} --offline-eval-frequency 0
    --temperature 0.03 --distill-coefficient 1 --huber --n-step 3 --adam-eps 1.5e-4
    --total-timesteps {ONLINE_STEPS} --buffer-size 10000 --learning-starts 1000 --train-frequency 8 --start-e 0.01"""
folder = qdagger.main(parse(qdagger.Args, command.split()))

# %%
for player, result in json.loads(Path(folder, "config.json").read_text())["evaluations"].items():
    print(f"{player:16} {np.mean(result['returns']):7.2f} +- {np.std(result['returns']):.2f}")

# %% [markdown]
# ## Teacher and student, side by side
#
# On the left the teacher, on the right the student, each in the green player's place.

# %%
enjoy.main(enjoy.Args(env_id="PongNoFrameskip-v4", eval_episodes=1, video=f"{folder}/teacher.gif"))
enjoy.main(enjoy.Args(run=str(folder), eval_episodes=1, video=f"{folder}/student.gif"))

opened = [Picture.open(f"{folder}/{name}.gif") for name in ("teacher", "student")]
films = [[frame.convert("RGB") for frame in ImageSequence.Iterator(film)] for film in opened]
width, height = films[0][0].size
pairs = []
for teacher, student in [*zip(*films, strict=False)][:250]:
    pairs.append(Picture.new("RGB", (2 * width, height)))
    pairs[-1].paste(teacher, (0, 0))
    pairs[-1].paste(student, (width, 0))
settings = {"append_images": pairs[1:], "duration": opened[0].info["duration"], "loop": 0}
pairs[0].save(f"{folder}/both.gif", save_all=True, **settings)
Image(filename=f"{folder}/both.gif")

# %% [markdown]
# ## What to take along
#
# - A policy can be handed on by its choices alone; the values that the student learns are its own.
# - Temperature and weight decide whether anything is handed on: the loss can be small because the student agrees, or
#   because the teacher says nothing.
# - The teacher has to let go, or the student never becomes better. Here the student's own games are too few for that;
#   `docs/benchmark/atari.md` has longer runs.
