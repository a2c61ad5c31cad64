"""What all Atari scripts share, apart from the learning rule: game names, FIRE, episodes, evaluation by whole games."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Any, Protocol

import ale_py
import gymnasium as gym
import numpy as np
from ale_py.env import AtariEnv
from ale_py.vector_env import AtariVectorEnv

from cleanrl_utils.devices.cores import num_cores
from cleanrl_utils.errors import BadInput, CannotGoOn
from cleanrl_utils.evals.history import History
from cleanrl_utils.evals.play import Act
from cleanrl_utils.evals.video import Screen, Show, film
from cleanrl_utils.record import versions
from cleanrl_utils.seeds import EVALUATION, env_seeds

gym.register_envs(ale_py)

RESULTS = ("obs", "lives", "frame_numbers", "returns", "lengths", "traces")
"""What replaying the same actions must reproduce."""

MAX_FRAMES = 108_000
"""Raw frames (60 per second, so 30 minutes) after which a game is cut, as usual in the field and in Gymnasium (v4, v5)."""
STRETCH = MAX_FRAMES // 4
"""Actions after which an environment is seeded again, as many as the longest game has. With more, a resumed run replays
longer; with fewer, training waits more often."""


PLAYED = {"frameskip": (1, 4), "full_action_space": (False,), "max_num_frames_per_episode": (MAX_FRAMES,)}
PLAYED |= {"obs_type": ("rgb",), "mode": (None,), "difficulty": (None,)}
"""Settings of an environment id that the games here share or replace, with the values that are accepted."""


class GameFlags(Protocol):
    """The flags of a script that choose its games."""

    env_id: str
    seed: int
    sticky_actions: float | None
    fire: bool
    noop_max: int
    full_action_space: bool


class EvalFlags(GameFlags, Protocol):
    """Also the flags on its evaluations and its rewards."""

    life_loss: bool
    eval_episodes: int
    eval_epsilon: float
    eval_max_frames: int


def game_settings(env_id: str) -> tuple[str, float]:
    """Return ROM name and sticky-action probability of a registered id: `pong`, 0.0 for PongNoFrameskip-v4.

    Raises `BadInput`, with the closest names, for an id that is not an Atari game played from its screen, or that has
    settings that ale-py's vector environment does not have.
    """
    spec = gym.registry.get(env_id)
    if spec is None or not _is_atari(spec):
        suffix = "NoFrameskip-v4"
        games = [name.removesuffix(suffix) for name, s in gym.registry.items() if _is_atari(s) and name.endswith(suffix)]
        close = difflib.get_close_matches(re.sub(r"^ALE/|(NoFrameskip|Deterministic)?(-.*)?$", "", env_id), games, n=3)
        hint = f"; closest: {', '.join(game + suffix for game in close)}" if close else ""
        if (bare := env_id.removeprefix("ale_py:")) != env_id and bare in gym.registry:
            hint = f": {bare}"
        raise BadInput("--env-id", env_id, f"must be an Atari game like PongNoFrameskip-v4 or ALE/Pong-v5{hint}")
    settings = dict(spec.kwargs)
    game, sticky = settings.pop("game"), settings.pop("repeat_action_probability", 0.25)  # the default of ale-py
    if isinstance(settings.get("frameskip"), tuple):
        allowed = "skips a random number of frames, here always 4: take its NoFrameskip-v4 or ALE/...-v5 id"
        raise BadInput("--env-id", env_id, allowed)
    for name, values in PLAYED.items():
        if settings.get(name) in values:
            settings.pop(name, None)
    if settings:
        others = ", ".join(f"{name}={value}" for name, value in settings.items())
        raise BadInput("--env-id", env_id, f"has settings that the games here cannot have: {others}")
    return game, sticky


@functools.cache
def minimal_actions(game: str) -> tuple[str, ...]:
    """Return the names of the actions in a game's minimal set."""
    envs = AtariVectorEnv(game, 1, num_threads=1)
    names = tuple(action.name for action in envs.ale.get_action_set())
    envs.close()
    return names


def count_actions(args: GameFlags) -> int:
    """Return the size of the action set that the flags choose."""
    return 18 if args.full_action_space else len(minimal_actions(game_settings(args.env_id)[0]))


def waits_for_fire(args: GameFlags) -> bool:
    """Whether FIRE, action 1, is pressed for the agent: in games that wait for it, by the rule of the classic wrappers.

    Those are the games whose minimal set has FIRE as action 1.
    """
    names = minimal_actions(game_settings(args.env_id)[0])
    return args.fire and len(names) >= 3 and names[1] == "FIRE"


def emulator_settings(args: GameFlags) -> dict[str, Any]:
    """Return the flags as keywords for both of ale-py's environments, vector and single."""
    _, sticky = game_settings(args.env_id)
    chance = sticky if args.sticky_actions is None else args.sticky_actions
    return {"repeat_action_probability": chance, "full_action_space": args.full_action_space}


def protocol(args: EvalFlags) -> dict[str, Any]:
    """Describe, from a run's flags, what its scores mean; the text is stored with them."""
    return {
        "frame_skip": 4,
        "max_noops": args.noop_max,
        "fire": "for the agent, after resets and lost lives" if args.fire else "never for the agent",
        "sticky_actions": emulator_settings(args)["repeat_action_probability"],
        "action_set": "full" if args.full_action_space else "minimal",
        "life_loss": args.life_loss,
        "learned_rewards": "sign",
        "evaluation": f"{args.eval_episodes} whole games, epsilon {args.eval_epsilon}, cut at {args.eval_max_frames} frames",
    }


def _is_atari(spec: gym.envs.registration.EnvSpec) -> bool:
    return "game" in spec.kwargs and spec.kwargs.get("obs_type", "rgb") == "rgb"


def num_threads(num_envs: int) -> int:
    """Return the number of threads that step `num_envs` games: one each, at most one per core this process may use."""
    return min(num_envs, num_cores())


class SeededGames:
    """ale-py's vector environment, with games that can be replayed from their seeds and actions.

    An environment is seeded for its first game, and again at the first end of a game after `STRETCH` actions. A reset with
    a seed takes 0.2 s, since the emulator loads the game again, and all games wait. In between, the games follow from the
    seed and the actions, so a checkpoint holds each environment's actions since it was seeded, and `restore` replays them.

    The settings are those of `AtariVectorEnv`. For each environment there are `obs` (N, 4, 84, 84) uint8, `lives` and
    `frame_numbers`; `returns` and `lengths`, the raw return and the steps of its game so far; `traces`, a checksum of the
    rewards and flags of all steps since it was seeded.
    """

    def __init__(self, args: GameFlags, purpose: int, num_games: int, **settings: Any) -> None:
        """Games with different values of `purpose` have different seeds."""
        self.env_id, self.seed, self.purpose = args.env_id, args.seed, purpose
        settings |= emulator_settings(args) | {"use_fire_reset": args.fire, "noop_max": args.noop_max}
        settings |= {"num_threads": num_threads(num_games), "reward_clipping": False}
        self.envs = AtariVectorEnv(game_settings(args.env_id)[0], num_games, **settings)
        self.num_actions, self.waits_for_fire = count_actions(args), waits_for_fire(args)
        self.history = History(num_games)
        self.returns, self.lengths = np.zeros(num_games), np.zeros(num_games, dtype=np.int64)
        self.traces = np.zeros(num_games, dtype=np.uint64)
        self._reset(np.ones(num_games, dtype=bool))

    def send(self, actions: np.ndarray) -> None:
        """Send actions (N,) int64 to the games, which step in threads."""
        self.history.add(actions)
        self.envs.send(actions)

    def recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[float, int]]]:
        """Wait for the step; returns rewards, terminations, truncations and resets, (N,) each, and finished games.

        `resets` is set where the step began a new game; the return and length of the previous game are then listed.
        """
        step = self._recv()
        *_, resets, _ = step
        if (seeded := resets & (self.history.lengths > STRETCH)).any():
            self.history.begin(seeded)
            self._reset(seeded)
        return step

    def _recv(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[float, int]]]:
        before = self.frame_numbers
        self.obs, rewards, terminations, truncations, infos = self.envs.recv()
        self.lives, self.frame_numbers = infos["lives"], infos["episode_frame_number"]
        # Flags do not tell where a game was reset: a lost life sets them too, and can hide a truncation.
        resets = self.frame_numbers < before
        finished = [(float(self.returns[i]), int(self.lengths[i])) for i in np.flatnonzero(resets)]
        self.returns = np.where(resets, 0, self.returns + rewards)
        self.lengths = np.where(resets, 0, self.lengths + 1)
        outcomes = 4 * rewards.astype(np.int64) + 2 * terminations + truncations
        self.traces = self.traces * np.uint64(1_000_003) + outcomes.astype(np.uint64)  # modulo 2**64
        return rewards, terminations, truncations, resets, finished

    def _reset(self, mask: np.ndarray) -> None:
        """Seed the environments in `mask` (N,) bool and begin their games; the others stay as they are."""
        seeds = env_seeds(self.seed, self.purpose, self.history.numbers)[mask]
        self.obs, infos = self.envs.reset(seed=seeds, options={"reset_mask": mask})
        self.lives, self.frame_numbers = infos["lives"], infos["episode_frame_number"]
        self.returns, self.lengths = np.where(mask, 0, self.returns), np.where(mask, 0, self.lengths)
        self.traces = np.where(mask, np.uint64(0), self.traces)

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the actions since each environment was seeded, and what they led to."""
        return {name: getattr(self, name) for name in RESULTS} | {"history": self.history.saved()}

    def restore(self, saved: dict[str, Any]) -> None:
        """Replay the saved actions. Raises `CannotGoOn` if they lead to something else."""

        def step(actions: np.ndarray) -> None:
            self.envs.send(actions)
            self._recv()

        self.history.restore(saved["history"])
        self.history.play_again(self._reset, step)
        if not all(np.array_equal(getattr(self, name), saved[name]) for name in RESULTS):
            made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
            raise CannotGoOn(f"--resume: {self.env_id} does not reproduce what the checkpoint saw, here with {made_with}")

    def close(self) -> None:
        """End the games and their threads."""
        self.envs.close()


def film_game(act: Act, args: EvalFlags, run_name: str, name: str) -> None:
    """Play one more game by the flags' protocol and write its screen to `videos/{run_name}/{name}.mp4`."""
    film(Path("videos") / run_name / f"{name}.mp4", functools.partial(show_game, act, args))


def show_game(act: Act, args: EvalFlags, show: Show) -> float:
    """Play one more game by the flags' protocol and show all its raw frames at 60 per second; returns the score.

    The vector environment has no screen, so this is a single environment under Gymnasium's wrappers. It has the seed of
    the evaluation's first game, but the wrappers draw no-ops from another generator, so it is a different game.
    """
    env = AtariEnv(
        game_settings(args.env_id)[0],
        frameskip=1,
        max_num_frames_per_episode=args.eval_max_frames,
        render_mode="rgb_array",
        **emulator_settings(args),
    )
    screen = Screen(env, show, fps=60)
    noop_max = args.noop_max if env.unwrapped.get_action_meanings()[0] == "NOOP" else 0  # Backgammon has no NOOP
    env = gym.wrappers.AtariPreprocessing(screen, noop_max=noop_max, frame_skip=4)
    env = gym.wrappers.FrameStackObservation(env, 4, padding_type="zero")
    rng = np.random.default_rng([args.seed, EVALUATION, 0])
    needs_fire = waits_for_fire(args)
    obs, info = env.reset(seed=int(env_seeds(args.seed, EVALUATION, np.zeros(1, dtype=int))[0]))
    press_fire, done = needs_fire, False
    while not done:
        action = rng.integers(env.action_space.n) if rng.random() < args.eval_epsilon else act(obs[None])[0]
        lives = info["lives"]
        obs, _, terminated, truncated, info = env.step(1 if press_fire else int(action))
        press_fire = needs_fire and info["lives"] < lives
        done = terminated or truncated
    env.close()
    return screen.score
